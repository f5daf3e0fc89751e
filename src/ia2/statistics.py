"""How much of a result is chance: bootstrap intervals, paired tests, many comparisons. NumPy in float64.

A resample is given as how often each row was drawn, so that rows are sorted and binned once and not once a resample:
a statistic takes its columns (n, ...) and `counts` (..., n), and gives (...).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Columns = Sequence[NDArray[Any]]
Statistic = Callable[..., Array]
N_RESAMPLES = 1000
N_PERMUTATIONS = 4096  # all of them are tried where there are no more, which is up to 12 rows or groups
N_PARTS = 10  # of a jackknife
CHUNK = 100  # resamples that are held at a time
Z = 1.959963984540054  # of a two-sided 95% interval
T = 2.2621571628  # the same of Student's t, with a degree of freedom less than there are parts


@dataclass(frozen=True)
class Interval:
    """A value with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def mean(values: Array, *, counts: Array | None = None) -> Array:
    """Mean of values (n,), each counted as often as `counts` (..., n) says, once without; (...)."""
    return np.asarray(values.mean() if counts is None else counts @ values / counts.sum(-1))


def bootstrap(
    statistic: Statistic, *columns: NDArray[Any], groups: Sequence[int] | None = None, seed: int = 0
) -> Interval:
    """The interval of one statistic of its columns; see `intervals`."""
    return intervals({"": (statistic, columns)}, groups, seed)[""]


def intervals(
    measures: Mapping[str, tuple[Statistic, Columns]], groups: Sequence[int] | None = None, seed: int = 0
) -> dict[str, Interval]:
    """Percentile bootstrap of several statistics on the same draws.

    Without groups, rows are drawn with replacement. With them, a statistic is the mean of the groups' own, and groups
    are drawn as well as rows within them (a two-level bootstrap): so that the interval of a result over several tasks
    and seeds counts how much these differ.

    Args:
        measures: for each name, a statistic and its columns, (n, ...) each.
        groups: (n,) the group of each row.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    values: dict[str, list[float]] = {name: [] for name in measures}
    draws: dict[str, list[Array]] = {name: [] for name in measures}
    for rows in _members(groups):
        own = {name: (f, [column[rows] for column in columns]) for name, (f, columns) in measures.items()}
        n = len(next(iter(own.values()))[1][0])
        chunks = [
            {name: f(*columns, counts=counts) for name, (f, columns) in own.items()} for counts in resamples(n, rng)
        ]
        for name, (f, columns) in own.items():
            values[name].append(float(f(*columns)))
            draws[name].append(np.concatenate([chunk[name] for chunk in chunks]))
    n_groups = len(next(iter(values.values())))
    chosen = (
        rng.integers(n_groups, size=(N_RESAMPLES, n_groups)),
        rng.integers(N_RESAMPLES, size=(N_RESAMPLES, n_groups)),
    )
    found = {}
    for name, draws_GB in draws.items():
        draws_B = np.stack(draws_GB)[chosen].mean(1) if n_groups > 1 else draws_GB[0]
        found[name] = percentiles(float(np.mean(values[name])), draws_B)
    return found


def percentiles(value: float, draws_B: Array) -> Interval:
    """The interval of a value that resamples give."""
    low, high = np.quantile(draws_B, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def jackknife(statistic: Callable[[Sequence[Any]], float], rows: Sequence[Any]) -> Interval:
    """The interval of a statistic that rows drawn twice would change, such as how many of them are different.

    From how much its values without each tenth of the rows differ, of which there must be ten (Kott 2001).
    """
    parts = [[row for i, row in enumerate(rows) if i % N_PARTS != part] for part in range(N_PARTS)]
    value, half = statistic(rows), T * math.sqrt(N_PARTS - 1) * float(np.std([statistic(part) for part in parts]))
    return Interval(value, value - half, value + half)


def paired(statistic: Statistic, a: Columns, b: Columns) -> tuple[Statistic, Columns]:
    """The statistic of columns `a` minus that of `b`, on the same rows: one entry of `intervals`' measures."""

    def gap(*columns: NDArray[Any], counts: Array | None = None) -> Array:
        return np.asarray(statistic(*columns[: len(a)], counts=counts) - statistic(*columns[len(a) :], counts=counts))

    return gap, [*a, *b]


def permutation_test(
    statistic: Statistic, a: Columns, b: Columns, groups: Sequence[int] | None = None, seed: int = 0
) -> float:
    """Two-sided p-value of the statistic of `a` minus that of `b`, where the two are one and the same in law.

    Without groups, `a` and `b` are exchanged within each row at random. With them, they are exchanged within whole
    groups, and the difference is the mean of the groups' own: what holds then holds for further seeds and tasks, of
    which there must be six for a p-value below 0.05. The observed assignment counts as one of the permutations
    (Phipson and Smyth 2010), so p > 0; all 2^n are tried where these are no more than `N_PERMUTATIONS`.

    Args:
        statistic: as everywhere here.
        a: columns (n, ...).
        b: columns of the same rows.
        groups: (n,) the group of each row.
        seed: of the permutations.
    """
    if groups is not None:
        gap, columns = paired(statistic, a, b)
        gaps_G = np.array([float(gap(*(column[rows] for column in columns))) for rows in _members(groups)])
        return permutation_test(mean, [gaps_G], [np.zeros_like(gaps_G)], seed=seed)
    both = [np.concatenate(pair) for pair in zip(a, b, strict=True)]
    chunks = []
    for kept in _assignments(len(a[0]), np.random.default_rng(seed)):
        first = np.concatenate([kept, 1 - kept], -1)
        chunks.append(statistic(*both, counts=first) - statistic(*both, counts=1 - first))
    size = np.abs(np.concatenate(chunks))
    return float((size >= size[0] - 1e-12 * max(1.0, size[0])).mean())


def mcnemar(a: Array, b: Array) -> float:
    """Exact two-sided p-value that `a` and `b`, 0 or 1 a row (n,), are right equally often on the same rows.

    Of the rows on which only one is right, each is as likely to be right: a sign test (McNemar 1947).
    """
    wins, losses = int((a > b).sum()), int((a < b).sum())
    n = wins + losses
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(min(wins, losses) + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log - n * math.log(2)) for log in logs))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several, in the order given: below alpha, none is false but with chance alpha.

    Step-down (Holm 1979): the k-th smallest of m is multiplied by m - k + 1, and never below a smaller one's.
    """
    p, order = np.asarray(p_values, float), np.argsort(p_values)
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return [float(value) for value in corrected]


def wilson(hits: Array, n: Array) -> tuple[Array, Array]:
    """95% interval of a proportion, `hits` of `n` (...), n > 0, within [0, 1]; low and high (...). Wilson 1927."""
    p = hits / n
    half = Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    centre, scale = p + Z**2 / (2 * n), 1 + Z**2 / n
    return ((centre - half) / scale).clip(0, p), ((centre + half) / scale).clip(p, 1)


def _members(groups: Sequence[int] | None) -> list[Any]:
    """What to index the rows of each group with; all rows, where there are no groups."""
    return [slice(None)] if groups is None else [np.asarray(groups) == g for g in np.unique(groups)]


def resamples(n: int, rng: np.random.Generator) -> Iterator[Array]:
    """How often each of n rows is drawn in each resample: `N_RESAMPLES` in chunks (CHUNK, n)."""
    for _ in range(N_RESAMPLES // CHUNK):
        cells = rng.integers(n, size=(CHUNK, n)) + n * np.arange(CHUNK)[:, None]
        yield np.bincount(cells.ravel(), minlength=CHUNK * n).reshape(CHUNK, n).astype(float)


def _assignments(n: int, rng: np.random.Generator) -> Iterator[Array]:
    """1 where a row keeps its place, 0 where `a` and `b` are exchanged, in chunks (CHUNK, n); first all 1."""
    n_all = min(2**n, N_PERMUTATIONS)
    for start in range(0, n_all, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, n_all))
        if 2**n <= N_PERMUTATIONS:
            kept = (~numbers[:, None] >> np.arange(n) & 1).astype(float)
        else:
            kept = rng.integers(2, size=(len(numbers), n)).astype(float)
            kept[numbers == 0] = 1.0
        yield kept
