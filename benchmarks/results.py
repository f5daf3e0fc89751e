"""The tables of docs/results.md, from the rows of a sweep.

python -m benchmarks.results docs/study.csv
"""

import sys
from typing import Any

import numpy as np
import pandas as pd

from ia2.report import display_name
from ia2.statistics import Interval, bootstrap, holm, mean, permutation_test

METRICS = ("accuracy", "nll", "brier", "ece", "similarity")
COMPARED = METRICS[:-1]
PAIRS = (
    ("ia2-sft", "sft"),
    ("ia2-sft", "soft-sft"),
    ("ia2-sft", "hidden-sft"),
    ("ia2-sft", "joint"),
    ("ia2-sft", "ia2"),
    ("ia2-sft", "icl"),
    ("ia2", "soft"),
    ("ia2", "hidden"),
    ("ia2-sft+unlabelled", "sft"),
    ("ia2-sft+unlabelled", "icl"),
)


def tables(rows: pd.DataFrame) -> dict[str, str]:
    """By title: means over cells, and paired differences, in distribution and out of it.

    A cell is a task, a number of examples and a seed. Intervals are of a bootstrap over tasks and over the cells within
    them; p-values exchange the two methods within whole tasks, corrected by Holm within a table.
    """
    own = rows[rows.test == rows.task]
    other = rows[rows.test != rows.task]
    found = {f"N={n}": means(own[own.n == n]) for n in sorted(own.n.unique())}
    found["Out of distribution, all N"] = means(other)
    found |= {f"Differences, N={n}": gaps(own[own.n == n]) for n in sorted(own.n.unique())}
    found["Differences, all N"] = gaps(own)
    found["Differences out of distribution, all N"] = gaps(other)
    return found


def means(rows: pd.DataFrame) -> str:
    """A line a method."""
    lines = [f"| method | {' | '.join(METRICS)} |", "|---|" + "---|" * len(METRICS)]
    for method, own in rows.groupby("method", sort=False):
        if "+contextual" in str(method) or "+temperature" in str(method):
            continue
        cells = [shown(bootstrap(mean, own[metric].to_numpy(), groups=_tasks(own))) for metric in METRICS]
        lines.append(f"| {display_name(str(method))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gaps(rows: pd.DataFrame) -> str:
    """A line a pair of methods."""
    lines = [f"| | {' | '.join(COMPARED)} | p (accuracy) |", "|---|" + "---|" * (len(COMPARED) + 1)]
    wide = rows.pivot_table(index=["task", "test", "n", "seed"], columns="method", values=list(COMPARED))
    tasks = _codes(wide.index.get_level_values("task"))
    names, cells, p_values = [], [], []
    for a, b in PAIRS:
        values = {metric: (wide[metric][a].to_numpy(), wide[metric][b].to_numpy()) for metric in COMPARED}
        cells.append([shown(bootstrap(mean, x - y, groups=tasks), "+") for x, y in values.values()])
        first, second = values["accuracy"]
        p_values.append(permutation_test(mean, [first], [second], groups=tasks))
        names.append(f"{display_name(a)} minus {display_name(b)}")
    for name, own, p in zip(names, cells, holm(p_values), strict=True):
        lines.append(f"| {name} | {' | '.join(own)} | {p:.3f} |")
    return "\n".join(lines)


def _tasks(rows: pd.DataFrame) -> list[int]:
    return _codes(rows.task)


def _codes(names: Any) -> list[int]:
    return [int(code) for code in np.unique(np.asarray(names), return_inverse=True)[1]]


def shown(value: Interval, sign: str = "") -> str:
    """With its interval."""
    return f"{value.value:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


if __name__ == "__main__":
    for title, table in tables(pd.read_csv(sys.argv[1])).items():
        print(f"\n## {title}\n\n{table}")
