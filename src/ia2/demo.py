"""The demo: one embedded model, several tasks, every method on the same few examples, measured there and then."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ia2 import world
from ia2.adapters import loaded_adapters
from ia2.config import make_config
from ia2.data import Example
from ia2.errors import choose
from ia2.evaluation import Prediction, Variant, difference, evaluate, summarise
from ia2.files import read_jsonl, write_jsonl
from ia2.models import LanguageModel, load_model
from ia2.progress import say, step
from ia2.results import print_table, write_results
from ia2.run import Data, Run

TASKS = ("mood", "animal", "topic-inverted", "food-words")
SEEDS = (0, 1)
N_TRAIN, N_DEV, N_TEST, N_UNLABELLED = 8, 8, 250, 64
LEARNING_RATES = (3e-3, 1e-2)
UNLABELLED = "+unlabelled"
COMPARED = (
    ("ia2-sft", "sft"),
    ("ia2-sft", "soft"),
    ("ia2-sft", "icl"),
    ("ia2", "sft"),
    (f"ia2-sft{UNLABELLED}", "sft"),
    (f"ia2-sft{UNLABELLED}", f"soft{UNLABELLED}"),
)


@dataclass(frozen=True)
class Cell:
    """One task with one draw of its rows."""

    task: world.WorldTask
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.task.name}, seed {self.seed}"

    def rows(self, split: str, n: int) -> tuple[Example, ...]:
        """Examples of a split."""
        return tuple(Example(**row) for row in self.task.rows(n, self.seed, split))

    def runs(self, model: str) -> Iterator[tuple[str, Run]]:
        """The trainings, each with what its name has more than its method's."""
        data = Data(self.rows("train", N_TRAIN), self.rows("dev", N_DEV))
        extra = tuple(Example(e.query) for e in self.rows("train", N_TRAIN + N_UNLABELLED)[N_TRAIN:])
        with_extra = Data(data.train, data.dev, extra)
        plan = (("sft", data, ""), ("soft", data, ""), ("ia2-sft", data, ""))
        plan_extra = (("soft", with_extra, UNLABELLED), ("ia2-sft", with_extra, UNLABELLED))
        for method, rows, suffix in (*plan, *plan_extra):
            values = {
                "model": model,
                "method": method,
                "labels": self.task.labels or "none",
                "seed": self.seed,
                "learning_rate": LEARNING_RATES,
            }
            yield suffix, Run.create(self.folder / f"{method}{suffix}", make_config(values), rows)

    def predictions(self, lm: LanguageModel, model: str) -> list[Prediction]:
        """Train what is not trained yet, evaluate everything on the same rows; kept in predictions.jsonl."""
        path = self.folder / "predictions.jsonl"
        if not path.is_file():
            adapters: dict[str, Path] = {}
            for suffix, run in self.runs(model):
                trained = run.train(lm, targets=self.folder / "targets")
                adapters |= {f"{name}{suffix}": folder for name, folder in trained.items()}
            variants = [*run.variants(run.contexts(lm))[:2], *(Variant(name, adapter=name) for name in adapters)]
            with loaded_adapters(lm, adapters):
                found = evaluate(lm, run.task(), self.rows("test", N_TEST), variants, reference=variants[1])
            write_jsonl(path, (asdict(prediction) for prediction in found))
        return [Prediction(**row) for row in read_jsonl(path)]


def run_demo(folder: Path, model: str) -> dict[str, Any]:
    """Run every cell that is not done yet, then write metrics, predictions and report, and print a table."""
    choose("embedded model", model, world.MODELS)
    cells = [Cell(world.TASKS[task], seed, folder / "cells" / f"{task}-{seed}") for task in TASKS for seed in SEEDS]
    lm = load_model(model)
    say(f"model '{model}', {len(TASKS)} tasks x {len(SEEDS)} seeds, {N_TRAIN} examples each; one of its prompts:\n")
    say(_picture(cells[0]))
    found: list[list[Prediction]] = []
    with step("demo", len(cells)) as advance:
        for cell in cells:
            found.append(cell.predictions(lm, model))
            say(f"{cell.name}: {_line(found[-1])}")
            advance()
    metrics = _metrics(model, cells, found)
    rows = [
        {"task": cell.task.name, "seed": cell.seed, **asdict(prediction)}
        for cell, predictions in zip(cells, found, strict=True)
        for prediction in predictions
    ]
    write_results(folder, metrics, rows)
    print_table(metrics)
    say(f"\nreport: {folder / 'report.html'}")
    return metrics


def _metrics(model: str, cells: list[Cell], found: list[list[Prediction]]) -> dict[str, Any]:
    def of(predictions: list[Prediction]) -> dict[str, list[Prediction]]:
        names = dict.fromkeys(p.variant for p in predictions)
        return {name: [p for p in predictions if p.variant == name] for name in names}

    pooled = of([p for predictions in found for p in predictions])
    groups = [i for i in range(len(cells)) for _ in range(N_TEST)]
    return {
        "title": f"IA2 demo on the embedded model '{model}'",
        "model": model,
        "n_train": N_TRAIN,
        "n_test": N_TEST,
        "methods": {name: summarise(rows, groups) for name, rows in pooled.items()},
        "differences": {f"{a} - {b}": difference(pooled[a], pooled[b], groups) for a, b in COMPARED},
        "cells": [
            {
                "task": cell.task.name,
                "description": cell.task.description,
                "seed": cell.seed,
                "methods": {name: summarise(rows) for name, rows in of(predictions).items()},
            }
            for cell, predictions in zip(cells, found, strict=True)
        ],
    }


def _picture(cell: Cell) -> str:
    demos = "\n\n".join(f"{e.query}{e.label}" for e in cell.rows("train", 2))
    return f"{demos}\n\n...\n\n{cell.rows('test', 1)[0].query}\n"


def _line(predictions: list[Prediction]) -> str:
    hits: dict[str, list[bool]] = {}
    for p in predictions:
        hits.setdefault(p.variant, []).append(p.correct)
    return "  ".join(f"{name} {sum(h) / len(h):.2f}" for name, h in hits.items())
