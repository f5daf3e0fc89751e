"""Adapters that behave as if a handful of examples were always in the prompt (IA2, arXiv 2509.22621).

Names are loaded when first used, so that `import ia2` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ia2.capture import Selection, read
    from ia2.config import RunConfig, make_config
    from ia2.contexts import Contexts
    from ia2.data import Example, read_examples
    from ia2.errors import IA2Error
    from ia2.evaluation import Variant, evaluate
    from ia2.metrics import ece
    from ia2.models import LanguageModel, load_model, wrap_model
    from ia2.prompt import Prompt, build_prompt
    from ia2.run import Data, Run
    from ia2.statistics import bootstrap
    from ia2.targets import Targets, collect
    from ia2.task import Task
    from ia2.tasks import load_task
    from ia2.tasks.benchmark import Benchmark
    from ia2.trainer import IA2Config, IA2Trainer

_HOMES = {
    "Benchmark": "tasks.benchmark",
    "Contexts": "contexts",
    "Data": "run",
    "Example": "data",
    "IA2Config": "trainer",
    "IA2Error": "errors",
    "IA2Trainer": "trainer",
    "LanguageModel": "models",
    "Prompt": "prompt",
    "Run": "run",
    "RunConfig": "config",
    "Selection": "capture",
    "Targets": "targets",
    "Task": "task",
    "Variant": "evaluation",
    "bootstrap": "statistics",
    "build_prompt": "prompt",
    "collect": "targets",
    "ece": "metrics",
    "evaluate": "evaluation",
    "load_model": "models",
    "load_task": "tasks",
    "make_config": "config",
    "read": "capture",
    "read_examples": "data",
    "wrap_model": "models",
}
__all__ = [
    "Benchmark",
    "Contexts",
    "Data",
    "Example",
    "IA2Config",
    "IA2Error",
    "IA2Trainer",
    "LanguageModel",
    "Prompt",
    "Run",
    "RunConfig",
    "Selection",
    "Targets",
    "Task",
    "Variant",
    "bootstrap",
    "build_prompt",
    "collect",
    "ece",
    "evaluate",
    "load_model",
    "load_task",
    "make_config",
    "read",
    "read_examples",
    "wrap_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ia2' has no attribute '{name}'")
    return getattr(import_module(f"ia2.{_HOMES[name]}"), name)
