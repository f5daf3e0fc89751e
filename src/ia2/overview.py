"""What the cells of a grid say together: accuracy and calibration of each method over cells, and paired differences."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ia2.comparison import RECALIBRATED, by_variant, differences, pool, read_predictions
from ia2.evaluation import Prediction
from ia2.statistics import bootstrap, holm, mean, permutation_test
from ia2.summary import measured

ALL = "all tasks"
Cells = Sequence[dict[str, list[Prediction]]]


@dataclass(frozen=True)
class Setting:
    """What cells share that are pooled: over tasks and seeds, and never over these."""

    model: str
    adapter: str
    n: int


@dataclass(frozen=True)
class Overview:
    """Rows with the fields of a `Setting`, `ood` and `n_cells`; values are intervals as in metrics.json.

    Attributes:
        methods: of each `task`, and of all tasks where there are several: `accuracy`, `ece`, `nll`, `brier`.
        differences: over all tasks, of `method` minus `minus`: the same with `p_value` and `p_holm`, which is corrected
            over the rows of the same setting and `ood`.
    """

    methods: list[dict[str, Any]]
    differences: list[dict[str, Any]]


def overview(cells: Sequence[tuple[Setting, Path]]) -> Overview:
    """Read the predictions in the folders of cells, one setting at a time.

    A value over several cells is the mean of theirs, and its interval a two-level bootstrap over cells and rows; tests
    out of distribution are pooled apart.
    """
    methods, pairs = [], []
    for setting in dict.fromkeys(of for of, _ in cells):
        tests: dict[tuple[bool, str], list[dict[str, list[Prediction]]]] = {}
        for task, test, predictions in _read([folder for of, folder in cells if of == setting]):
            name = task if test == task else f"{task} → {test}"
            tests.setdefault((test != task, name), []).append(by_variant(predictions))
        for ood in (False, True):
            panels: dict[str, Cells] = {name: of for (kind, name), of in tests.items() if kind == ood}
            if not panels:
                continue
            everything = [cell for of in panels.values() for cell in of]
            shared = {**asdict(setting), "ood": ood}
            for name, of in {**({ALL: everything} if len(panels) > 1 else {}), **panels}.items():
                methods += [{**shared, "task": name, **row} for row in _methods(of)]
            for pair, values in differences(everything).items():
                method, minus = pair.split(" - ", 1)
                pairs.append({**shared, "n_cells": len(everything), "method": method, "minus": minus, **values})
    return Overview(methods, pairs)


def over_all_n(rows: Any) -> list[dict[str, Any]]:
    """How much more accurate each trained method is than SFT, over all N: the most accurate method first.

    Args:
        rows: a pandas table of one model and adapter, on the tests of the cells' own tasks: `task`, `seed`, `n`,
            `method` and `accuracy`.

    Returns:
        Of each `method`: `accuracy`, the mean difference over all N that both are at, with an interval over tasks and
        seeds within them, and `p_holm`, of exchanging the two within each task and seed, corrected over methods.
    """
    of = rows.pivot_table(index=["task", "seed", "n"], columns="method", values="accuracy")
    others = [name for name in of if name not in ("zero-shot", "icl", "sft") and not name.endswith(RECALIBRATED)]
    found = []
    for name in sorted(others if "sft" in of else (), key=lambda name: -of[name].mean()):
        gaps = (of[name] - of["sft"]).dropna().groupby(["task", "seed"]).mean()
        tasks = gaps.index.get_level_values("task").factorize()[0].tolist()
        p = permutation_test(mean, [gaps.to_numpy()], [0 * gaps.to_numpy()])
        found.append({"method": name, "p": p, "accuracy": asdict(bootstrap(mean, gaps.to_numpy(), groups=tasks))})
    corrected = holm([row.pop("p") for row in found])
    return [{**row, "p_holm": p} for row, p in zip(found, corrected, strict=True)]


def _read(folders: Sequence[Path]) -> Iterator[tuple[str, str, list[Prediction]]]:
    """Task, test and predictions, of each test of each cell."""
    for folder in folders:
        found = read_predictions(folder)
        task = next(iter(found))
        yield from ((task, test, predictions) for test, predictions in found.items())


def _methods(cells: Cells) -> Iterator[dict[str, Any]]:
    pooled, groups = pool(cells)
    for name, predictions in pooled.items():
        yield {"method": name, "n_cells": len(cells), **measured(predictions, groups)}
