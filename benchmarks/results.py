"""The tables of docs/results.md, from study.csv, ablations.csv, overlap.csv and perhaps orders.csv of a folder.

python -m benchmarks.results docs
"""

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.ablations import ADAPTERS, SETTINGS
from ia2.report import display_name
from ia2.statistics import Interval, holm, intervals, mean, permutation_test

METRICS = ("accuracy", "nll", "brier", "ece", "similarity")
COMPARED = METRICS[:-1]
CELL = ["model", "task", "test", "n", "seed"]
PAIRS = (
    ("ia2-sft", "sft"),
    ("ia2-sft", "soft-sft"),
    ("ia2-sft", "hidden-sft"),
    ("ia2-sft", "joint"),
    ("ia2-sft", "sft-ia2"),
    ("ia2-sft", "ia2"),
    ("ia2-sft", "icl"),
    ("ia2", "soft"),
    ("ia2", "hidden"),
    ("ia2-sft+unlabelled", "sft"),
    ("ia2-sft+unlabelled", "icl"),
)


def every_table(folder: Path) -> dict[str, str]:
    """By title, of the files in a folder."""
    study, ablations, overlaps = (pd.read_csv(folder / f"{name}.csv") for name in ("study", "ablations", "overlap"))
    found = tables(study)
    found["One thing changed"] = changes(ablations)
    if ablations.setting.isin(ADAPTERS).any():
        found["Other adapters"] = adapters(ablations)
    found["Overlap of updates"] = overlap(overlaps)
    found["Where ICL helps"] = by_lift(study)
    found["Cost"] = cost(study)
    if (folder / "orders.csv").is_file():
        found["Orders drawn together"] = together(pd.read_csv(folder / "orders.csv"), study)
    return found


def tables(rows: pd.DataFrame) -> dict[str, str]:
    """By title: means over cells, and paired differences, in distribution and out of it.

    A cell is a task, a number of examples and a seed of one model. Intervals are of a bootstrap over tasks and over the
    cells within them; p-values exchange the two methods within whole tasks, corrected by Holm within a table.
    """
    found = {}
    for model, of in rows.groupby("model", sort=False):
        own, other = of[of.test == of.task], of[of.test != of.task]
        sizes = sorted(own.n.unique())
        found |= {f"{model}, N={n}": means(own[own.n == n]) for n in sizes}
        found[f"{model}, out of distribution"] = means(other)
        found |= {f"{model}, differences, N={n}": gaps(own[own.n == n]) for n in sizes}
        found[f"{model}, differences, all N"] = gaps(own)
        found[f"{model}, differences out of distribution"] = gaps(other)
    return found


def means(rows: pd.DataFrame) -> str:
    """A line a method, over the cells in which all of them were run."""
    rows = rows[~rows.method.str.contains(r"\+contextual|\+temperature")]
    n_methods = rows.groupby(CELL).method.transform("nunique")
    rows = rows[n_methods == n_methods.max()]
    lines = [f"| {rows.groupby(CELL).ngroups} cells | {' | '.join(METRICS)} |", "|---|" + "---|" * len(METRICS)]
    for method, own in rows.groupby("method", sort=False):
        lines.append(f"| {display_name(str(method))} | {' | '.join(over_tasks(own[[*METRICS]], own.task))} |")
    return "\n".join(lines)


def gaps(rows: pd.DataFrame) -> str:
    """A line a pair of methods, over the cells in which both were run."""
    lines = [f"| | cells | {' | '.join(COMPARED)} | p (accuracy) |", "|---|---|" + "---|" * (len(COMPARED) + 1)]
    names, cells, p_values = [], [], []
    for a, b in PAIRS:
        gap = paired(rows, a, b)
        if gap.empty:
            continue
        tasks = gap.index.get_level_values("task")
        cells.append([str(len(gap)), *over_tasks(gap, tasks, "+")])
        accuracy = gap.accuracy.to_numpy()
        p_values.append(permutation_test(mean, [accuracy], [np.zeros_like(accuracy)], groups=codes(tasks)))
        names.append(f"{display_name(a)} minus {display_name(b)}")
    for name, own, p in zip(names, cells, holm(p_values), strict=True):
        lines.append(f"| {name} | {' | '.join(own)} | {p:.3f} |")
    return "\n".join(lines)


def paired(rows: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Differences of two methods in the cells that have both, a column a metric."""
    first, second = (rows[rows.method == name].set_index(CELL)[list(COMPARED)] for name in (a, b))
    return (first - second).dropna()


def changes(rows: pd.DataFrame) -> str:
    """A line a setting: its method, and the difference to the same method of the default."""
    default = rows[rows.setting == "default"]
    lines = ["| | method | accuracy | nll | brier | ece | similarity |", "|---|---|" + "---|" * len(METRICS)]
    for setting, method, own in _by_method(rows, [name for name in SETTINGS if name not in ADAPTERS]):
        base = _plain(default, method)
        lines.append(f"| {setting} | {display_name(method)} | {' | '.join(over_tasks(own[[*METRICS]], own.task))} |")
        if setting != "default":
            both = own.set_index(["task", "seed"])[list(METRICS)] - base
            gap = over_tasks(both, both.index.get_level_values("task"), "+")
            lines.append(f"| | minus the default's | {' | '.join(gap)} |")
    return "\n".join(lines)


def _plain(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """What a method of a setting is compared with: itself, or where the default has none of its name, IA2→SFT."""
    name = method if method in set(rows.method) else "ia2-sft"
    return rows[rows.method == name].set_index(["task", "seed"])[list(METRICS)]


def adapters(rows: pd.DataFrame) -> str:
    """A line an adapter and method, and the differences of IA2→SFT and SFT."""
    lines = ["| adapter | method | accuracy | nll | brier | ece | similarity |", "|---|---|" + "---|" * len(METRICS)]
    for setting, method, own in _by_method(rows, ADAPTERS):
        lines.append(f"| `{setting}` | {display_name(method)} | {' | '.join(over_tasks(own[[*METRICS]], own.task))} |")
        if method == "ia2-sft":
            sft = rows[(rows.setting == setting) & (rows.method == "sft")].set_index(["task", "seed"])
            both = own.set_index(["task", "seed"])[list(METRICS)] - sft[list(METRICS)]
            gap = over_tasks(both, both.index.get_level_values("task"), "+")
            lines.append(f"| | minus SFT | {' | '.join(gap)} |")
    return "\n".join(lines)


def _by_method(rows: pd.DataFrame, settings: Any) -> Iterator[tuple[str, str, pd.DataFrame]]:
    trained = rows[~rows.method.str.contains("zero-shot|icl|temperature")]
    for setting in settings:
        for method, own in trained[trained.setting == setting].groupby("method", sort=False):
            yield setting, str(method), own


def overlap(rows: pd.DataFrame) -> str:
    """A line a pair of methods, over the cells of `tiny` with LoRA."""
    lines = ["| | overlap | of random subspaces |", "|---|---|---|"]
    for (a, b), own in rows.groupby(["a", "b"], sort=False):
        (value,) = over_tasks(own[["overlap"]], own.task)
        lines.append(f"| {display_name(str(a))} with {display_name(str(b))} | {value} | {own.expected.mean():.3f} |")
    return "\n".join(lines)


def by_lift(rows: pd.DataFrame) -> str:
    """IA2→SFT minus SFT in the cells of `tiny`, by how much more accurate than zero-shot ICL is there."""
    own = rows[(rows.model == "tiny") & (rows.test == rows.task)]
    gap, lift = (paired(own, *pair)[["accuracy"]] for pair in (("ia2-sft", "sft"), ("icl", "zero-shot")))
    lines = ["| ICL minus zero-shot | cells | IA2→SFT minus SFT, accuracy |", "|---|---|---|"]
    for low, high in pairwise((-1.0, 0.1, 0.25, 0.4, 1.0)):
        part = gap[((lift.accuracy > low) & (lift.accuracy <= high)).reindex(gap.index)]
        (value,) = over_tasks(part, part.index.get_level_values("task"), "+")
        name = f"up to {high:+.2f}" if low == -1 else f"above {low:+.2f}" if high == 1 else f"{low:+.2f} to {high:+.2f}"
        lines.append(f"| {name} | {len(part)} | {value} |")
    return "\n".join(lines)


def cost(rows: pd.DataFrame) -> str:
    """Seconds of training beside SFT's in the same cells, a line a method, a column an N."""
    own = rows[(rows.test == rows.task) & (rows.adapter == "lora")]
    seconds = own.pivot_table(index=["model", "n", "task", "seed"], columns="method", values="training_seconds")
    sizes = list(seconds.groupby(level=["model", "n"]).groups)
    lines = [f"| | {' | '.join(f'{model}, N={n}' for model, n in sizes)} |", "|---|" + "---|" * len(sizes)]
    for method in [name for name in own.method.unique() if name in seconds and name != "sft"]:
        ratio = (seconds[method] / seconds.sft).groupby(level=["model", "n"]).median()
        cells = ["" if np.isnan(ratio.get(at, np.nan)) else f"{ratio[at]:.1f}" for at in sizes]
        lines.append(f"| {display_name(method)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def together(rows: pd.DataFrame, study: pd.DataFrame) -> str:
    """A line a method: of orders drawn together (`ia2.contexts.TOGETHER` at 2) minus one by one, in the same cells."""
    lines = [f"| {rows.groupby(CELL).ngroups} cells | {' | '.join(METRICS)} |", "|---|" + "---|" * len(METRICS)]
    for method, own in rows.groupby("method", sort=False):
        base = study[study.method == method].set_index(CELL)[list(METRICS)]
        gap = (own.set_index(CELL)[list(METRICS)] - base).dropna()
        values = over_tasks(gap, gap.index.get_level_values("task"), "+")
        lines.append(f"| {display_name(str(method))} | {' | '.join(values)} |")
    return "\n".join(lines)


def over_tasks(rows: pd.DataFrame, tasks: Any, sign: str = "") -> list[str]:
    """The mean of each column, with its interval over tasks and the cells within them, as text."""
    return [shown(of, sign) for of in measured(rows, tasks).values()]


def measured(rows: pd.DataFrame, tasks: Any) -> dict[str, Interval]:
    """The mean of each column, with its interval over tasks and the cells within them."""
    return intervals({str(name): (mean, [rows[name].to_numpy()]) for name in rows}, codes(tasks))


def codes(names: Any) -> list[int]:
    """A number for each name."""
    return [int(code) for code in np.unique(np.asarray(names), return_inverse=True)[1]]


def shown(value: Interval, sign: str = "") -> str:
    """With its interval."""
    return f"{value.value:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


if __name__ == "__main__":
    for title, table in every_table(Path(sys.argv[1])).items():
        print(f"\n### {title}\n\n{table}")
