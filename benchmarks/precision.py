"""What the teacher's values may be rounded to: priming on them in several types, on seeds without reported results.

python -m benchmarks.precision
"""

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.subject import ATTENTION, load
from ia2 import world
from ia2.adapters import new_adapter
from ia2.contexts import Contexts
from ia2.data import Example
from ia2.evaluation import Variant, gold
from ia2.jobs import Rows, TrainingSettings
from ia2.methods import methods
from ia2.models import LanguageModel
from ia2.prompt import build_prompt
from ia2.statistics import bootstrap, mean
from ia2.targets import Targets, collect
from ia2.task import Task
from ia2.training import train_stage

TASKS, SEEDS = ("mood", "animal", "time-choice", "travel-words"), (100, 101, 102, 103)
N, N_DEV, N_TEST = 16, 8, 250
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def scores(lm: LanguageModel, name: str, seed: int) -> Iterator[tuple[float, float]]:
    """NLL and accuracy on test rows behind priming, for each type."""
    task = Task(world.TASKS[name].labels)
    train, dev, test = (
        [Example(**row) for row in world.TASKS[name].rows(n, seed, split)]
        for n, split in ((N, "train"), (N_DEV, "dev"), (N_TEST, "test"))
    )
    contexts, rng = Contexts(tuple(train)), np.random.default_rng(seed)
    given = []
    for rows in (train, dev):
        student = [lm.encoder.encode(build_prompt(task, (), row.query, row.label)) for row in rows]
        given.append((student, collect(lm, contexts.prompts(task, rows, rng), ATTENTION).values["attn_out"]))
    for kind in TYPES:
        rounded = [Rows(of, Targets({"attn_out": [row.to(kind) for row in values]})) for of, values in given]
        with new_adapter(lm, seed=seed):
            train_stage(lm, methods()["ia2"].stages[0], *rounded, TrainingSettings(1e-3, seed=seed))
            found = gold(lm, task, test, Variant("ia2", adapter="default"), frozenset())
        yield (
            float(np.mean(found.nll)),
            float(np.mean([of.text == e.label for of, e in zip(found.answers, test, strict=True)])),
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    lm = load()
    found = np.array([list(scores(lm, name, seed)) for name in TASKS for seed in SEEDS])
    print("| type | NLL | accuracy | NLL minus float32's | accuracy minus float32's |\n|---|---|---|---|---|")
    for i, kind in enumerate(TYPES):
        cells = [f"{of:.4f}" for of in found[:, i].mean(0)]
        gaps = [bootstrap(mean, found[:, i, m] - found[:, 0, m]) for m in (0, 1)]
        cells += [f"{of.value:+.5f} [{of.low:+.5f}, {of.high:+.5f}]" for of in gaps]
        print(f"| {str(kind).removeprefix('torch.')} | {' | '.join(cells)} |")
