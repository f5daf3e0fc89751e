"""Accuracy, calibration and cost. NumPy in float64; n rows, N rows of C labels.

Every metric takes `counts` (..., n), how often each row counts, once by default, and gives (...): see `statistics`.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ia2.statistics import Array, wilson

Ints = NDArray[np.int64]
N_BINS = 15


def bins(confidence: Array, n_bins: int = N_BINS) -> Ints:
    """The equal-width bin of each confidence, right-closed; 0 falls into the first."""
    return np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)


def mass_bins(confidence: Array, *, counts: Array | None = None, n_bins: int = N_BINS) -> Ints:
    """The equal-mass bin of each row: bins of the share of rows that are no surer; rows that tie share a bin."""
    counts = _counts(confidence, counts)
    bins_up_to = _cumulated(confidence, counts) * n_bins / counts.sum(-1, keepdims=True)
    return np.asarray(np.clip(np.ceil(bins_up_to).astype(np.int64) - 1, 0, n_bins - 1))


def ece(confidence: Array, correct: Array, n_bins: int = N_BINS, *, counts: Array | None = None) -> Array:
    """Expected calibration error: sum over bins of (rows in bin / n) |mean confidence - accuracy|; in [0, 1].

    Args:
        confidence: (n,) probability of the answer given, in [0, 1].
        correct: (n,) 0 or 1.
        n_bins: of equal width, right-closed.
        counts: how often each row counts.

    Source: Guo et al. 2017, equation 3.
    """
    return _ece(bins(confidence, n_bins), confidence, correct, n_bins, _counts(confidence, counts))


def ece_mass(confidence: Array, correct: Array, n_bins: int = N_BINS, *, counts: Array | None = None) -> Array:
    """`ece` over bins that hold equally many rows (adaptive, equal-mass). Source: Nixon et al. 2019."""
    counts = _counts(confidence, counts)
    return _ece(mass_bins(confidence, counts=counts, n_bins=n_bins), confidence, correct, n_bins, counts)


def classwise_ece(p_NC: Array, gold_N: Ints, *, counts: Array | None = None) -> Array:
    """Mean over labels of the `ece` of P(label) against whether it is the gold one; in [0, 1].

    A label that no row gives any probability to is another task's and does not count. Source: Kull et al. 2019.
    """
    errors = [ece(p_NC[:, c], gold_N == c, counts=counts) for c in np.flatnonzero(p_NC.any(0))]
    return np.asarray(np.mean(errors, 0))


def mce(confidence: Array, correct: Array, n_bins: int = N_BINS, *, counts: Array | None = None) -> Array:
    """Maximum calibration error: the largest |mean confidence - accuracy| of a bin of equal width; in [0, 1].

    Noisy where bins hold few rows. Source: Guo et al. 2017, equation 5.
    """
    counts, index = _counts(confidence, counts), bins(confidence, n_bins)
    gaps = np.abs(_sums(index, counts * (confidence - correct), n_bins))
    return np.asarray((gaps / np.maximum(_sums(index, counts, n_bins), 1)).max(-1))


def aurc(confidence: Array, correct: Array, *, counts: Array | None = None) -> Array:
    """Area under the risk-coverage curve: mean over rows of the error rate among rows at least as sure; in [0, 1].

    Rows of equal confidence are covered together, so their order does not matter.
    Source: Geifman, Uziel and El-Yaniv 2019.
    """
    counts = _counts(confidence, counts)
    covered, errors = _cumulated(-confidence, counts), _cumulated(-confidence, counts * (1 - correct))
    return np.asarray((counts * errors / np.maximum(covered, 1)).sum(-1) / counts.sum(-1))


def excess_aurc(confidence: Array, correct: Array, *, counts: Array | None = None) -> Array:
    """`aurc` minus that of the same answers with every right one surer than every wrong one; in [0, 1].

    With m wrong of n, the least is (1/n) sum_{j=1..m} j / (n - m + j). Source: as `aurc`.
    """
    counts = _counts(confidence, counts)
    n = counts.sum(-1).astype(np.int64)
    m = (counts * (1 - correct)).sum(-1).astype(np.int64)
    harmonic = np.concatenate([[0.0], (1 / np.arange(1, n.max() + 1)).cumsum()])
    least = (m - (n - m) * (harmonic[n] - harmonic[n - m])) / n
    return np.asarray(aurc(confidence, correct, counts=counts) - least)


def macro_f1(answer_N: Ints, gold_N: Ints, *, counts: Array | None = None) -> Array:
    """Mean over labels of F1 = 2 hits / (times answered + times gold); in [0, 1].

    An answer of -1, which is no label, is a miss. A label that is neither answered nor gold does not count.
    """
    counts, n_labels = _counts(gold_N, counts), 1 + max(answer_N.max(), gold_N.max())
    hits = _sums(gold_N, counts * (answer_N == gold_N), n_labels)
    used = _sums(gold_N, counts, n_labels) + _sums(answer_N + 1, counts, n_labels + 1)[..., 1:]
    return np.asarray((2 * hits / np.maximum(used, 1)).sum(-1) / (used > 0).sum(-1))


def entropy(p_NC: Array) -> Array:
    """Entropy of each row's label probabilities, nats, in [0, log C]; (N,)."""
    return np.asarray(-(p_NC * np.log(np.where(p_NC > 0, p_NC, 1.0))).sum(-1))


def nll(logp_NC: Array, gold_N: Ints) -> Array:
    """-log P(gold label) of each row, nats, at least 0; (N,)."""
    return -logp_NC[np.arange(len(gold_N)), gold_N]


def brier(p_NC: Array, gold_N: Ints) -> Array:
    """Squared error of the probabilities summed over labels, in [0, 2]; (N,). Source: Brier 1950."""
    return np.asarray(((p_NC - np.eye(p_NC.shape[1])[gold_N]) ** 2).sum(-1))


def reliability(confidence: Array, correct: Array) -> list[dict[str, float]]:
    """A record for each bin of equal width that holds rows, from the least sure on.

    `from` and `to` are its edges, `n` its rows, `confidence` and `accuracy` their means, `low` and `high` the 95%
    Wilson interval of the accuracy. The mean over rows of their bin's |confidence - accuracy| is `ece`.
    """
    index = bins(confidence)
    n, sure, hits = (_sums(index, column, N_BINS) for column in (np.ones_like(confidence), confidence, correct))
    records = []
    for k in np.flatnonzero(n):
        low, high = wilson(hits[k], n[k])
        shares = {"confidence": sure[k] / n[k], "accuracy": hits[k] / n[k], "low": low, "high": high}
        edges = {"from": k / N_BINS, "to": (k + 1) / N_BINS}
        records.append({**{key: float(v) for key, v in (edges | shares).items()}, "n": int(n[k])})
    return records


def break_even(training: float, reference: float, method: float) -> int | None:
    """How many queries pay for a training; None if none do.

    Args:
        training: what it cost, in any unit: seconds, or tokens processed.
        reference: what a query costs without it (ICL), in the same unit.
        method: what a query costs with it.
    """
    return math.ceil(training / (reference - method)) if reference > method else None


def _counts(column: NDArray[np.generic], counts: Array | None) -> Array:
    return np.ones(len(column)) if counts is None else counts


def _cumulated(score: Array, values: Array) -> Array:
    """For each row, the sum of values (..., n) over the rows whose score (n,) is at most its own; (..., n)."""
    order = np.argsort(score, kind="stable")
    last = np.searchsorted(score, score, side="right", sorter=order) - 1
    return np.asarray(values[..., order].cumsum(-1)[..., last])


def _sums(index: Ints, values: Array, n_bins: int) -> Array:
    """Sum of values (..., n) within each bin, given by index (n,) or (..., n); (..., n_bins)."""
    shape = values.shape[:-1]
    offset = n_bins * np.arange(math.prod(shape)).reshape(*shape, 1)
    sums = np.bincount((offset + index).ravel(), values.ravel(), math.prod(shape) * n_bins)
    return np.asarray(sums, float).reshape(*shape, n_bins)


def _ece(index: Ints, confidence: Array, correct: Array, n_bins: int, counts: Array) -> Array:
    gaps = _sums(index, counts * (confidence - correct), n_bins)
    return np.asarray(np.abs(gaps).sum(-1) / counts.sum(-1))
