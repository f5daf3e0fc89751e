"""The embedded world: a small language of attributes, tasks in it, and two small models that learn them in context."""

from pathlib import Path

from ia2.world.tasks import TASKS, WorldTask
from ia2.world.text import STOP

MODELS = {name: Path(__file__).parent / "models" / name for name in ("tiny", "tiny-gpt2")}

__all__ = ["MODELS", "STOP", "TASKS", "WorldTask"]
