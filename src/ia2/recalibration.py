"""Calibration without training: what a temperature, or the model's answer to an empty query, would give.

N rows, C labels. Functions of log-probabilities (N, C), which need not be normalised; results are, over the labels.
"""

import numpy as np

from ia2.errors import IA2Error
from ia2.metrics import Ints
from ia2.statistics import Array

CONTENT_FREE = ("N/A", "", "[MASK]")  # Zhao et al. 2021, section 5
TEMPERATURES = (0.05, 20.0)  # the least and the greatest; rows that are all right, or too few, would give 0 or infinity


def scale(logp_NC: Array, temperature: float) -> Array:
    """log_softmax(logp / T): less sure above 1, same answers. Guo et al. 2017, eq. 9."""
    return _normalised(logp_NC / temperature)


def fit_temperature(logp_NC: Array, gold_N: Ints) -> float:
    """The temperature of least mean NLL, within `TEMPERATURES`.

    The NLL is convex in 1/T, and its slope there is the mean of E_p[logp] - logp(gold): bisection finds where it is 0.

    Args:
        logp_NC: of development rows, never of test rows.
        gold_N: the index of each row's gold label.

    Raises:
        IA2Error: there are no rows.
    """
    if len(gold_N) == 0:
        raise IA2Error("found no development rows to fit a temperature on, expected one or more: hold some out (--dev)")
    gold = logp_NC[np.arange(len(gold_N)), gold_N]
    low, high = np.log(TEMPERATURES)
    while high - low > 1e-9:
        middle = (low + high) / 2
        p_NC = np.exp(scale(logp_NC, np.exp(middle)))
        if ((p_NC * logp_NC).sum(-1) - gold).mean() > 0:  # too sure
            low = middle
        else:
            high = middle
    return float(np.exp(high))


def contextual(logp_NC: Array, logp_free_MC: Array) -> Array:
    """Contextual calibration: log-probabilities divided by what the model says when there is nothing to say.

    log q = log_softmax(logp - log p_free), with p_free the mean of the M rows' label probabilities. The answers are
    those of Zhao et al. 2021, equation 1, with W = diag(p_free)^-1 and b = 0; where they take a softmax of W p, which
    would be one of probabilities, W p is divided by its sum.

    Args:
        logp_NC: of the queries.
        logp_free_MC: with the same context, of `CONTENT_FREE` in the query's place.
    """
    logp_free_C = np.logaddexp.reduce(_normalised(logp_free_MC), 0)  # M times p_free: a factor that goes again
    return _normalised(logp_NC - logp_free_C)


def _normalised(logp: Array) -> Array:
    return np.asarray(logp - np.logaddexp.reduce(logp, axis=-1, keepdims=True))
