"""Accuracy and calibration, from one record a row; intervals by bootstrap. NumPy in float64 (n rows, C labels)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
N_BINS = 15
N_RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A value with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def bins(confidence: Array, n_bins: int = N_BINS) -> NDArray[np.int64]:
    """The equal-width bin of each confidence, right-closed; 0 falls into the first."""
    return np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)


def ece(confidence: Array, correct: Array, n_bins: int = N_BINS) -> Array:
    """Expected calibration error: sum over bins of (rows in bin / n) |mean confidence - accuracy|; in [0, 1].

    Args:
        confidence: (..., n) probability of the answer given, in [0, 1].
        correct: (..., n) 0 or 1.
        n_bins: of equal width.

    Returns:
        (...), one a row of `n`. Source: Guo et al. 2017, equation 3.
    """
    index, gap = bins(confidence, n_bins), confidence - correct
    sums = [np.abs(np.where(index == k, gap, 0.0).sum(-1)) for k in range(n_bins)]
    return np.asarray(sum(sums) / confidence.shape[-1])


def mean(values: Array) -> Array:
    """(..., n) -> (...)."""
    return np.asarray(values.mean(-1))


def bootstrap(
    statistic: Callable[..., Array], *columns: Array, groups: Sequence[int] | None = None, seed: int = 0
) -> Interval:
    """Percentile bootstrap of a statistic of one or more columns of equal length.

    Without groups, rows are drawn with replacement. With them, the statistic is the mean of the groups' own, and groups
    are drawn as well as rows within them (a two-level bootstrap): so that the interval of a result over several tasks
    and seeds counts how much these differ.

    Args:
        statistic: of arrays (..., n), over their last axis.
        columns: (n,) each.
        groups: (n,) the group of each row.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros(len(columns[0]), int) if groups is None else np.asarray(groups)
    values, draws_GB = [], []
    for g in np.unique(labels):
        part = [column[labels == g] for column in columns]
        rows_BN = rng.integers(len(part[0]), size=(N_RESAMPLES, len(part[0])))
        values.append(float(statistic(*part)))
        draws_GB.append(statistic(*(column[rows_BN] for column in part)))
    n_groups = len(values)
    chosen = (
        rng.integers(n_groups, size=(N_RESAMPLES, n_groups)),
        rng.integers(N_RESAMPLES, size=(N_RESAMPLES, n_groups)),
    )
    draws_B = np.stack(draws_GB)[chosen].mean(1) if n_groups > 1 else draws_GB[0]
    low, high = np.quantile(draws_B, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high))
