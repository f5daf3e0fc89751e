"""The demo: one embedded model, several tasks, every method on the same few examples, measured there and then."""

from pathlib import Path
from typing import Any

from ia2 import world
from ia2.comparison import UNLABELLED, Cell, compare
from ia2.data import Example
from ia2.errors import choose
from ia2.progress import say
from ia2.results import print_table
from ia2.run import Data

TASKS = ("mood", "place-inverted", "travel-words", "time-choice")
SEEDS = (0, 1)
N_TRAIN, N_DEV, N_TEST, N_UNLABELLED = 8, 8, 250, 64
METHODS = ("sft", "soft", "ia2-sft", f"soft{UNLABELLED}", f"ia2-sft{UNLABELLED}")
COMPARED = (
    ("ia2-sft", "sft"),
    ("ia2-sft", "soft"),
    ("ia2-sft", "icl"),
    ("ia2", "sft"),
    (f"ia2-sft{UNLABELLED}", "sft"),
    (f"ia2-sft{UNLABELLED}", f"soft{UNLABELLED}"),
)


def demo_cell(name: str, seed: int, model: str, folder: Path) -> Cell:
    """One task with one draw of its rows."""
    task = world.TASKS[name]

    def rows(split: str, n: int) -> tuple[Example, ...]:
        return tuple(Example(**row) for row in task.rows(n, seed, split))

    pool = rows("train", N_TRAIN + N_UNLABELLED)
    data = Data(pool[:N_TRAIN], rows("dev", N_DEV), tuple(Example(e.query) for e in pool[N_TRAIN:]))
    options = {"model": model, "labels": task.labels or "none"}
    place = folder / f"{name}-{seed}"
    tests = {"test": rows("test", N_TEST)}
    return Cell(name, seed, options, data, tests, place, task.description, recalibrated=False)


def run_demo(folder: Path, model: str) -> dict[str, Any]:
    """Run every cell that is not done yet, then write metrics, predictions and report, and print a table."""
    choose("embedded model", model, world.MODELS)
    cells = [demo_cell(task, seed, model, folder / "cells") for task in TASKS for seed in SEEDS]
    say(f"model '{model}', {len(TASKS)} tasks x {len(SEEDS)} seeds, {N_TRAIN} examples each; one of its prompts:\n")
    say(_picture(cells[0]))
    metrics = compare(folder, cells, METHODS, COMPARED, f"IA2 demo on the embedded model '{model}'")
    print_table(metrics)
    say(f"\nreport: {folder / 'report.html'}")
    return metrics


def _picture(cell: Cell) -> str:
    demos = "\n\n".join(f"{e.query}{e.label}" for e in cell.data.train[:2])
    return f"{demos}\n\n...\n\n{cell.tests['test'][0].query}\n"
