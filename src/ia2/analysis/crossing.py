"""How many examples it takes until one method is no longer ahead of another: where their difference crosses zero."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ia2.errors import IA2Error
from ia2.statistics import N_RESAMPLES, Array, Interval, bootstrap, mean, percentiles


@dataclass(frozen=True)
class Line:
    """A line in log N, fitted to the difference of two methods' accuracy, with 95% bootstrap intervals.

    Attributes:
        first, last: its value at the smallest and at the largest N measured.
        per_doubling: how much it rises each time N doubles.
        n: where it crosses zero; None if not within the range measured.
        low, high: the interval of that; None where it is not within the range, or there is no crossing.
        p_crosses: the share of resamples whose line crosses zero within the range.
    """

    first: Interval
    last: Interval
    per_doubling: Interval
    n: float | None
    low: float | None
    high: float | None
    p_crosses: float


def crossing(rows: Any, method: str, reference: str = "sft", metric: str = "accuracy", seed: int = 0) -> dict[str, Any]:
    """Fit a line in log N to the metric of one method minus that of another, and say where it crosses zero.

    Args:
        rows: see `read_results`; of one model and adapter.
        method, reference: in every cell that has both they are compared.
        metric: a column.
        seed: of the resampling.

    Returns:
        `sizes`, the N measured; `means`, the mean difference at each, with an interval; `pooled`, the `Line` of all
        tasks, with one slope and the mean of the tasks' intercepts; `tasks`, of each task with two or more seeds its
        own `means` and `Line`. Intervals of all tasks are of drawing tasks, and seeds within them, those of a task of
        drawing its seeds.

    Raises:
        IA2Error: fewer than two N, or only one cell at each.
    """
    key = ["task", "seed", "n"]
    of = {name: rows[rows["method"] == name].set_index(key)[metric] for name in (method, reference)}
    gaps = (of[method] - of[reference]).dropna().rename("gap").reset_index()
    sizes = sorted(int(n) for n in gaps["n"].unique())
    runs = {task: _sums(own) for task, own in gaps.groupby("task")}
    if len(sizes) < 2 or sum(map(len, runs.values())) < 2:
        found = f"{method} and {reference} at {len(sizes)} N, in {len(gaps)} cells"
        raise IA2Error(f"found {found}; expected at least two N, and two tasks or seeds")
    rng = np.random.default_rng(seed)
    return {
        "sizes": sizes,
        "means": _means(gaps),
        "pooled": asdict(_line(list(runs.values()), sizes, rng)),
        "tasks": {
            task: {"means": _means(gaps[gaps["task"] == task]), **asdict(_line([own], sizes, rng))}
            for task, own in runs.items()
            if len(own) > 1
        },
    }


def _means(gaps: Any) -> list[dict[str, Any]]:
    """At each `n`, the mean over tasks of the mean over their seeds."""
    return [
        {"n": int(n), **asdict(bootstrap(mean, own["gap"].to_numpy(), groups=own["task"].factorize()[0].tolist()))}
        for n, own in gaps.groupby("n")
    ]


def _sums(gaps: Any) -> Array:
    """What a line of a task depends on, for each seed: count, and sums of x = log N, y, x² and xy; (S, 5)."""
    x, y = np.log(gaps["n"]), gaps["gap"]
    columns = gaps[["seed"]].assign(one=1.0, x=x, y=y, xx=x * x, xy=x * y)
    return np.asarray(columns.groupby("seed").sum())


def _fit(sums_BG5: Array) -> tuple[Array, Array]:
    """Least squares with one slope and an intercept a task: the mean intercept and the slope, (B,) each."""
    n, x, y, xx, xy = np.moveaxis(sums_BG5, -1, 0)
    between, within = (xy - x * y / n).sum(-1), (xx - x * x / n).sum(-1)
    slope_B = np.divide(between, within, out=np.zeros_like(between), where=within > 1e-9)
    return (y / n - slope_B[:, None] * x / n).mean(-1), slope_B


def _line(tasks: list[Array], sizes: list[int], rng: np.random.Generator) -> Line:
    """Of the sums of each task's seeds (S, 5), with tasks and seeds drawn with replacement."""
    B, G = N_RESAMPLES, len(tasks)
    own_GB5 = np.stack([of[rng.integers(len(of), size=(B, len(of)))].sum(1) for of in tasks])
    drawn_BG5 = own_GB5[rng.integers(G, size=(B, G)), rng.integers(B, size=(B, G))]
    observed_1G5 = np.stack([of.sum(0) for of in tasks])[None]
    level_B, slope_B = (np.concatenate(pair) for pair in zip(_fit(observed_1G5), _fit(drawn_BG5), strict=True))
    ends = [math.log(sizes[0]), math.log(sizes[-1])]
    first_B, last_B = (level_B + slope_B * end for end in ends)
    crosses_B = np.sign(first_B) * np.sign(last_B) <= 0
    found: dict[str, Any] = {"n": None, "low": None, "high": None}
    if crosses_B[0] and slope_B[0]:
        found = crossing_point(level_B, slope_B, first_B, last_B, ends)
    return Line(
        first=percentiles(first_B[0], first_B[1:]),
        last=percentiles(last_B[0], last_B[1:]),
        per_doubling=percentiles(slope_B[0] * math.log(2), slope_B[1:] * math.log(2)),
        p_crosses=float(crosses_B[1:].mean()),
        **found,
    )


def crossing_point(
    level_B: Array, slope_B: Array, first_B: Array, last_B: Array, ends: list[float]
) -> dict[str, float | None]:
    """The N at which the observed line, which is first, crosses zero, and its interval.

    A resample whose line does not cross within the range counts as beyond the end where it is nearer to doing so: above
    it if the method that is ahead at first stays ahead. One that crosses the other way counts as beyond both.
    """
    side = -np.sign(slope_B[0])  # of the first part of the observed line
    at_B = np.divide(-level_B, slope_B, out=np.full_like(level_B, np.inf), where=slope_B != 0)
    stays_B, never_B = (side * first_B > 0) & (side * last_B > 0), (side * first_B <= 0) & (side * last_B <= 0)
    other_B = (side * first_B < 0) & (side * last_B > 0)
    at_B = np.where(stays_B, np.inf, np.where(never_B, -np.inf, at_B))
    low = np.quantile(np.where(other_B, -np.inf, at_B)[1:], 0.025, method="lower")
    high = np.quantile(np.where(other_B, np.inf, at_B)[1:], 0.975, method="higher")
    within = {"n": at_B[0], "low": low, "high": high}
    return {name: math.exp(x) if ends[0] <= x <= ends[1] else None for name, x in within.items()}
