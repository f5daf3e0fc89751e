"""Methods on the same samples: cells, each one draw of rows, and what they say together."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ia2.adapters import loaded_adapters
from ia2.config import RunConfig, make_config
from ia2.data import Example, read_examples
from ia2.errors import IA2Error
from ia2.evaluation import Prediction, Variant, answer, evaluate
from ia2.files import key_of, read_json, read_jsonl, write_json, write_jsonl
from ia2.metrics import break_even
from ia2.models import LanguageModel
from ia2.progress import say, step
from ia2.recalibration import CONTENT_FREE, contextual, fit_temperature, scale
from ia2.results import write_results
from ia2.run import Data, Run, train_runs
from ia2.statistics import holm
from ia2.summary import difference, summarise
from ia2.task import Task

UNLABELLED, TEMPERATURE, CONTEXTUAL = "+unlabelled", "+temperature", "+contextual"
RECALIBRATED = (TEMPERATURE, CONTEXTUAL)  # endings of what is another method with other probabilities
MIN_ROWS = 16


@dataclass(frozen=True)
class Cell:
    """One draw of rows, on which every method is trained and tested.

    Attributes:
        source: what the rows are called: a task, or a file.
        seed: of the draw, and of all that is random in training.
        options: of every run, by the names of `RunConfig`.
        data: rows to train on; the unlabelled ones go to methods that end in `+unlabelled` alone.
        tests: test rows by name; the first are in distribution.
        tasks: of tests whose answers are not those that are trained on: other labels, out of distribution.
        folder: where everything of the cell is kept.
        description: of the source, for people.
        recalibrated: whether ICL and SFT are also shown at another temperature (fitted on development rows, if there
            are at least 16: on fewer it runs to its bounds), and ICL with contextual calibration.
    """

    source: str
    seed: int
    options: dict[str, Any]
    data: Data
    tests: Mapping[str, Sequence[Example]]
    folder: Path
    description: str = ""
    recalibrated: bool = True
    tasks: Mapping[str, Task] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.source}, seed {self.seed}"

    def run_of(self, method: str) -> Run:
        """The run that trains a method."""
        data = self.data if method.endswith(UNLABELLED) else replace(self.data, unlabelled=())
        values = {**self.options, "method": method.removesuffix(UNLABELLED), "seed": self.seed}
        return Run.create(self.folder / method, make_config(values), data, self.folder / "targets")

    def train(self, lm: LanguageModel, methods: Sequence[str]) -> tuple[dict[str, Path], dict[str, float]]:
        """Train what is not trained yet: adapter folders, and the seconds that each took, by name."""
        train_cells([self], lm, methods)
        adapters: dict[str, Path] = {}
        seconds: dict[str, float] = {}
        for method in methods:
            suffix, run = UNLABELLED if method.endswith(UNLABELLED) else "", self.run_of(method)
            adapters |= {f"{name}{suffix}": of for name, of in run.adapters.items()}
            seconds |= {f"{name}{suffix}": of for name, of in run.training_seconds().items()}
        return adapters, seconds

    def results(
        self, lm: LanguageModel, methods: Sequence[str]
    ) -> tuple[dict[str, list[Prediction]], dict[str, float]]:
        """Predictions by test, and training seconds by method; done once for what is asked, and kept.

        Asked for other methods or tests, adapters that are there are not trained again.

        Raises:
            IA2Error: the folder holds adapters that were trained with other options or on other rows.
        """
        path, record = self.folder / "predictions.jsonl", self.folder / "cell.json"
        asked = self._asked(methods)
        if not record.is_file() or read_json(record)["asked"] != asked:
            for test, rows in self.tests.items():
                self.data.say_if_seen(rows, test)
            adapters, seconds = self.train(lm, methods)
            write_jsonl(path, ({"test": test, **asdict(p)} for test, p in self._evaluated(lm, adapters)))
            write_json(record, {"asked": asked, "training_seconds": seconds})
        return read_predictions(self.folder), read_json(record)["training_seconds"]

    def context(self, lm: LanguageModel) -> str:
        """What ICL sees before the first test query."""
        run = self._run()
        first = next(iter(self.tests.values()))[0]
        return run.variants(run.contexts(lm))[1].shown(run.task(), first)

    def _run(self) -> Run:
        return Run(self.folder, make_config({**self.options, "seed": self.seed}), self.data)

    def _asked(self, methods: Sequence[str]) -> str:
        """A hash of all that decides the results."""
        rows = [[asdict(e) for e in of] for of in (self.data.train, self.data.dev, self.data.unlabelled)]
        tests = {test: [asdict(e) for e in of] for test, of in self.tests.items()}
        config = make_config({**self.options, "seed": self.seed}).model_dump(mode="json")
        tasks = {test: asdict(task) for test, task in self.tasks.items()}
        what = [config, list(methods), rows, tests, self.recalibrated, tasks]
        return key_of(what)

    def _evaluated(self, lm: LanguageModel, adapters: dict[str, Path]) -> list[tuple[str, Prediction]]:
        run = self._run()
        task, contexts = run.task(), run.contexts(lm)
        zero, icl = Variant("zero-shot"), Variant("icl", contexts, seed=self.seed)
        found: list[tuple[str, Prediction]] = []
        with loaded_adapters(lm, adapters):
            variants = [zero, icl, *(Variant(name, adapter=name) for name in adapters)]
            tests = {
                test: evaluate(lm, self.tasks.get(test, task), rows, variants, icl) for test, rows in self.tests.items()
            }
            alike = [rows for test, rows in tests.items() if self.tasks.get(test, task).labels == task.labels]
            calibrated = [v for v in variants if v.name in ("icl", "sft")] if task.labels and self.recalibrated else []
            for variant in calibrated:
                dev = answer(lm, task, self.data.dev, variant) if len(self.data.dev) >= MIN_ROWS else []
                empty = [Example(query) for query in content_free(self.data.train)]
                free = answer(lm, task, empty, variant) if variant is icl else []
                for predictions in alike:
                    own = [p for p in predictions if p.variant == variant.name]
                    if dev:
                        logp, gold = _logps([a.logp_labels for a in dev]), [e.label for e in self.data.dev]
                        heat = fit_temperature(logp, np.array([(task.labels or ()).index(label) for label in gold]))
                        predictions += _recalibrated(own, TEMPERATURE, scale(_logps_of(own), heat))
                    if free:
                        logp_free = _logps([a.logp_labels for a in free])
                        predictions += _recalibrated(own, CONTEXTUAL, contextual(_logps_of(own), logp_free))
        for test, predictions in tests.items():
            found += [(test, prediction) for prediction in predictions]
        return found


def read_predictions(folder: Path) -> dict[str, list[Prediction]]:
    """What a cell left in its folder: predictions by test, the one in distribution first."""
    found: dict[str, list[Prediction]] = {}
    for row in read_jsonl(folder / "predictions.jsonl"):
        found.setdefault(row.pop("test"), []).append(Prediction(**row))
    return found


def file_cells(
    config: RunConfig,
    seeds: Sequence[int],
    folder: Path,
    train: Path,
    dev: Path | None,
    tests: Sequence[Path],
    unlabelled: Path | None,
) -> list[Cell]:
    """Cells on the rows of files, one a seed; without development rows, the seed also says which are held out."""
    rows, extra = read_examples(train), read_examples(unlabelled, labelled=False) if unlabelled else []
    names = [f"{path.parent.name}/{path.stem}" for path in tests]
    found = {name: read_examples(path) for name, path in zip(names, tests, strict=True)}
    options = config.model_dump(exclude={"method", "seed"})
    cells = []
    for seed in seeds:
        data = Data(rows, read_examples(dev), extra) if dev else Data.split(rows, seed, extra)
        cells.append(Cell(train.stem, seed, options, data, found, folder / f"seed{seed}"))
    return cells


def content_free(examples: Sequence[Example]) -> list[str]:
    """Queries that say nothing, in the form of the examples': what all of these begin and end with, around a filler."""
    queries = [example.query for example in examples]
    start = os.path.commonprefix(queries)  # noqa: RUF071  (of characters, and meant so)
    end = os.path.commonprefix([query[len(start) :][::-1] for query in queries])[::-1]  # noqa: RUF071
    return [f"{start}{filler}{end}" for filler in CONTENT_FREE if f"{start}{filler}{end}"]


def _logps(rows: Sequence[dict[str, float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([list(row.values()) for row in rows])


def _logps_of(predictions: Sequence[Prediction]) -> np.ndarray[Any, np.dtype[np.float64]]:
    tiny = np.finfo(np.float64).tiny
    return np.log([[max(p, tiny) for p in (row.p_labels or {}).values()] for row in predictions])


def _recalibrated(predictions: Sequence[Prediction], suffix: str, logp_NC: Any) -> list[Prediction]:
    """The same answers with other probabilities; contextual calibration may change the answers too."""
    found = []
    for p, logp_C in zip(predictions, np.asarray(logp_NC), strict=True):
        labels = list(p.p_labels or {})
        p_labels = dict(zip(labels, np.exp(logp_C).tolist(), strict=True))
        best = max(p_labels.values())
        winners = [label for label, value in p_labels.items() if value == best]
        text = winners[0] if len(winners) == 1 else ""
        brier = sum((value - (label == p.response)) ** 2 for label, value in p_labels.items())
        nll = -float(logp_C[labels.index(p.response)])
        found.append(
            replace(
                p,
                variant=f"{p.variant}{suffix}",
                answer=text,
                correct=text == p.response,
                unparsable=not text,
                score=float(text == p.response),
                confidence=best,
                p_answer=best,
                p_labels=p_labels,
                nll=nll,
                brier=brier,
            )
        )
    return found


def compare(
    folder: Path,
    cells: Sequence[Cell],
    methods: Sequence[str],
    pairs: Sequence[tuple[str, str]] | None = None,
    title: str = "",
    lm: LanguageModel | None = None,
) -> dict[str, Any]:
    """Run every cell that is not done yet, then pool them: metrics.json, predictions.jsonl and report.html.

    Args:
        folder: for the results.
        cells: all with the same model, and with tests of the same names.
        methods: to train, see `ia2.methods`; `+unlabelled` behind a name gives it the unlabelled rows.
        pairs: methods whose difference is wanted; by default every trained one with SFT and with ICL.
        title: of the report.
        lm: the model, if it is loaded already.

    Returns:
        What metrics.json holds: `methods` and `differences` over all cells (p-values corrected over the pairs by Holm:
        `p_holm`), the same for each out-of-distribution test, and `methods` of every cell.
    """
    check_same_tests(cells)
    lm = lm or cells[0].run_of("sft").load_model()
    train_cells(cells, lm, methods)
    results = []
    with step("compare", len(cells)) as advance:
        for cell in cells:
            results.append(cell.results(lm, methods))
            say(f"{cell.name}: {_line(next(iter(results[-1][0].values())))}")
            advance()
    tests = list(cells[0].tests)
    pooled = {test: _pooled([found[test] for found, _ in results], pairs) for test in tests}
    first = pooled[tests[0]]
    for name, method in first["methods"].items():
        base = name.removesuffix(TEMPERATURE)
        if all(base in seconds for _, seconds in results):
            method["training_seconds"] = float(np.mean([seconds[base] for _, seconds in results]))
            costs = (
                method["training_seconds"],
                first["methods"]["icl"]["seconds_per_query"],
                method["seconds_per_query"],
            )
            method["break_even_queries"] = break_even(*costs)
    metrics = {
        "title": title or f"Methods compared on {cells[0].options['model']}",
        "model": cells[0].options["model"],
        "n_train": len(cells[0].data.train),
        "n_test": len(next(iter(cells[0].tests.values()))),
        "test": tests[0],
        **first,
        "out_of_distribution": {test: pooled[test] for test in tests[1:]},
        "cells": [
            {
                "task": cell.source,
                "description": cell.description,
                "seed": cell.seed,
                "context": cell.context(lm),
                "methods": _by_method(found[tests[0]]),
            }
            for cell, (found, _) in zip(cells, results, strict=True)
        ],
    }
    rows = [
        {"task": cell.source, "seed": cell.seed, **({"test": test} if len(tests) > 1 else {}), **asdict(prediction)}
        for cell, (found, _) in zip(cells, results, strict=True)
        for test in tests
        for prediction in found[test]
    ]
    write_results(folder, metrics, rows)
    return metrics


def train_cells(cells: Sequence[Cell], lm: LanguageModel, methods: Sequence[str]) -> None:
    """Train what is not trained yet, all cells side by side; their models are all `lm`."""
    train_runs([cell.run_of(method) for cell in cells for method in methods], lm)


def check_same_tests(cells: Sequence[Cell]) -> None:
    """All cells of a comparison are tested on sets of the same names."""
    if len({tuple(cell.tests) for cell in cells}) != 1:
        raise IA2Error("the tasks that are compared have different test sets; compare them one by one")


def by_variant(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """The predictions of each variant, in the order of the rows."""
    names = dict.fromkeys(p.variant for p in predictions)
    return {name: [p for p in predictions if p.variant == name] for name in names}


def _by_method(predictions: Sequence[Prediction]) -> dict[str, Any]:
    return {name: summarise(rows) for name, rows in by_variant(predictions).items()}


def _pooled(found: Sequence[list[Prediction]], pairs: Sequence[tuple[str, str]] | None) -> dict[str, Any]:
    """Over cells: a metric is the mean of the cells' own, its interval counts how cells and rows differ."""
    cells = [by_variant(predictions) for predictions in found]
    pooled, groups = pool(cells)
    methods = {name: summarise(rows, groups) for name, rows in pooled.items()}
    return {"methods": methods, "differences": differences(cells, pairs)}


def pool(cells: Sequence[dict[str, list[Prediction]]]) -> tuple[dict[str, list[Prediction]], list[int] | None]:
    """The predictions of each variant that all cells have, and the cell of each; None of a single cell."""
    shared = [name for name in cells[0] if all(name in cell for cell in cells)]
    groups = [i for i, cell in enumerate(cells) for _ in cell["icl"]] if len(cells) > 1 else None
    return {name: [p for cell in cells for p in cell[name]] for name in shared}, groups


def differences(
    cells: Sequence[dict[str, list[Prediction]]], pairs: Sequence[tuple[str, str]] | None = None
) -> dict[str, Any]:
    """Paired differences over cells, by default of every trained method with SFT and with ICL.

    Beside each metric's `p_value`, `p_holm` is corrected over the pairs.
    """
    pooled, groups = pool(cells)
    trained = [name for name in pooled if name not in ("zero-shot", "icl") and not name.endswith(RECALIBRATED)]
    if pairs is None:
        pairs = [(a, b) for a in trained for b in ("sft", "icl") if a != b and b in pooled]
    found = {f"{a} - {b}": difference(pooled[a], pooled[b], groups) for a, b in pairs}
    for metric in next(iter(found.values()), {}):
        corrected = holm([values[metric]["p_value"] for values in found.values()])
        for values, p in zip(found.values(), corrected, strict=True):
            values[metric]["p_holm"] = p
    return found


def _line(predictions: Sequence[Prediction]) -> str:
    return "  ".join(f"{name} {np.mean([p.correct for p in of]):.2f}" for name, of in by_variant(predictions).items())
