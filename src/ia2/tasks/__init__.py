"""Tasks by name, or from a file of one's own: one short YAML each, and those of the embedded world."""

from pathlib import Path

from ia2.errors import IA2Error, choose
from ia2.tasks.benchmark import Benchmark, file_benchmark, world_benchmark
from ia2.world import TASKS

FOLDER = Path(__file__).parent

__all__ = ["Benchmark", "load_task", "task_names"]


def task_names() -> list[str]:
    """The benchmarks in alphabetical order, then the tasks of the embedded world."""
    return [*sorted(path.stem for path in FOLDER.glob("*.yaml")), *TASKS]


def load_task(name_or_path: str | Path) -> Benchmark:
    """A task by its name, or from a task file: a path that ends in `.yaml` or `.yml`. Reads no rows yet.

    Raises:
        IA2Error: no such task, or a task file that is not right; see `ia2.tasks.taskfile.TaskFile`.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return file_benchmark(path)
    name = str(name_or_path)
    if "/" in name or "\\" in name:
        raise IA2Error(f"'{name}' is no name of a task; expected a path that ends in .yaml, or a name of 'ia2 tasks'")
    if choose("task", name, task_names()) in TASKS:
        return world_benchmark(TASKS[name])
    return file_benchmark(FOLDER / f"{name}.yaml")
