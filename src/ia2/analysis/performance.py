"""Whether what is more similar to ICL is also more accurate and better calibrated: one point a cell and method."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ia2.comparison import RECALIBRATED
from ia2.errors import IA2Error
from ia2.statistics import Array, Interval, bootstrap

METRICS = ("accuracy", "ece")
CONTROLS = ("model", "adapter", "task", "n")
UNTRAINED = ("zero-shot", "icl")
MIN_TASKS = 3


def similarity_and_performance(rows: Any) -> dict[str, Any]:
    """How the similarity to ICL goes together with accuracy and with ECE, over all trained methods of a sweep.

    Args:
        rows: see `read_results`.

    Returns:
        `points`, one a cell and method, but for recalibrated ones, whose similarity is another's; and by metric
        `pearson`, `spearman` (of ranks) and `partial`, each in [-1, 1] with a bootstrap interval over tasks, and 0
        where nothing varies. `partial` is Pearson's of what a regression on task and N (and model and adapter), as
        dummies, leaves of both.

    Raises:
        IA2Error: fewer than three tasks.
    """
    method = rows["method"]
    rows = rows[~method.isin(UNTRAINED) & ~method.str.endswith(RECALIBRATED)]
    n_tasks = rows["task"].nunique()
    if n_tasks < MIN_TASKS:
        raise IA2Error(f"found trained methods on {n_tasks} tasks; expected at least 3, as intervals are over tasks")
    kept = ["model", "adapter", "task", "n", "seed", "method", "similarity", *METRICS]
    found: dict[str, Any] = {"points": rows[kept].to_dict("records"), "n_tasks": n_tasks}
    controls_ND = np.concatenate([_dummies(rows[name].to_numpy()) for name in CONTROLS], axis=1)
    x_N = rows["similarity"].to_numpy(float)
    tasks = rows["task"].to_numpy()
    for metric in METRICS:
        y_N = rows[metric].to_numpy(float)
        found[metric] = {
            "pearson": asdict(_over_tasks(pearson, [x_N, y_N], tasks)),
            "spearman": asdict(_over_tasks(spearman, [x_N, y_N], tasks)),
            "partial": asdict(_over_tasks(partial, [x_N, y_N, controls_ND], tasks)),
        }
    return found


def pearson(x_N: Array, y_N: Array) -> float:
    """Pearson's correlation, in [-1, 1]; 0 where one of the two does not vary."""
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    scale = np.linalg.norm(x_N) * np.linalg.norm(y_N)
    return float(x_N @ y_N / scale) if scale > 1e-12 else 0.0


def spearman(x_N: Array, y_N: Array) -> float:
    """Spearman's correlation, that of ranks; those that tie have their mean rank."""
    return pearson(rankdata(x_N), rankdata(y_N))


def partial(x_N: Array, y_N: Array, controls_ND: Array) -> float:
    """Pearson's correlation of the residuals of both after least squares on the controls."""
    both_N2 = np.stack([x_N, y_N], axis=1)
    left_N2 = both_N2 - controls_ND @ np.linalg.lstsq(controls_ND, both_N2, rcond=None)[0]
    return pearson(left_N2[:, 0], left_N2[:, 1])


def _dummies(values_N: NDArray[Any]) -> Array:
    return np.asarray(values_N[:, None] == np.unique(values_N), float)


def _over_tasks(statistic: Callable[..., float], columns: Sequence[Array], tasks: NDArray[Any]) -> Interval:
    """A statistic of columns (N, ...), with its interval over tasks, each drawn with all its rows."""
    rows_of = [np.flatnonzero(tasks == task) for task in np.unique(tasks)]

    def drawn(_: Array, *, counts: Array | None = None) -> Array:
        if counts is None:
            return np.asarray(statistic(*columns))
        draws = [np.repeat(np.arange(len(rows_of)), n.astype(int)) for n in counts]
        chosen = [np.concatenate([rows_of[task] for task in draw]) for draw in draws]
        return np.array([statistic(*(column[rows] for column in columns)) for rows in chosen])

    return bootstrap(drawn, np.arange(len(rows_of)))
