"""Temperature and contextual calibration against SciPy and naive versions."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ia2.errors import IA2Error
from ia2.metrics import ece, nll
from ia2.recalibration import TEMPERATURES, contextual, fit_temperature, scale
from ia2.statistics import Array


def draw(n: int, sharpness: float, seed: int = 0, n_labels: int = 3) -> tuple[Array, np.ndarray]:
    """Log-probabilities that are `sharpness` times as sure as they should be, and labels drawn from the right ones."""
    rng = np.random.default_rng(seed)
    logp = log_softmax(rng.normal(0, 1.5, (n, n_labels)), axis=-1)
    gold = np.array([rng.choice(n_labels, p=np.exp(row)) for row in logp])
    return log_softmax(sharpness * logp, axis=-1), gold


@pytest.mark.parametrize(("n", "sharpness"), [(5, 1.0), (48, 3.0), (400, 0.4)])
def test_the_temperature_is_the_one_that_scipy_finds(n: int, sharpness: float) -> None:
    logp, gold = draw(n, sharpness)

    def loss(log_t: float) -> float:
        return float(-log_softmax(logp / np.exp(log_t), axis=-1)[np.arange(n), gold].mean())

    best = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(logp, gold) == pytest.approx(np.exp(best.x), rel=1e-4)
    assert nll(scale(logp, fit_temperature(logp, gold)), gold).mean() <= nll(logp, gold).mean() + 1e-12
    assert fit_temperature(logp + 7.0, gold) == pytest.approx(fit_temperature(logp, gold))  # need not be normalised


def test_a_temperature_mends_what_is_too_sure_and_changes_no_answer() -> None:
    logp, gold = draw(2000, 4.0)
    fitted = fit_temperature(*draw(2000, 4.0, seed=1))
    assert fitted == pytest.approx(4.0, rel=0.1)
    scaled = scale(logp, fitted)
    assert np.exp(scaled).sum(-1) == pytest.approx(1)
    assert (scaled.argmax(-1) == logp.argmax(-1)).all()
    correct = (logp.argmax(-1) == gold).astype(float)
    assert ece(np.exp(logp.max(-1)), correct) > 0.15 > 0.05 > ece(np.exp(scaled.max(-1)), correct)


@pytest.mark.parametrize(("gold", "limit"), [([0], 0), ([1], 1), ([0, 0], 0), ([1, 1], 1)])
def test_rows_that_are_all_right_or_all_wrong_give_a_finite_temperature(gold: list[int], limit: int) -> None:
    logp = np.log(np.array([[0.7, 0.3]] * len(gold)))
    assert fit_temperature(logp, np.array(gold)) == pytest.approx(TEMPERATURES[limit])


def test_no_development_rows_is_an_error() -> None:
    with pytest.raises(IA2Error, match="no development rows"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, int))


def test_contextual_calibration_equals_a_naive_one() -> None:
    rng = np.random.default_rng(3)
    logp, free = log_softmax(rng.normal(0, 2, (20, 4)), axis=-1), log_softmax(rng.normal(0, 2, (3, 4)), axis=-1)
    p_free = [sum(np.exp(free[m, c]) for m in range(3)) / 3 for c in range(4)]
    for row, found in zip(logp, contextual(logp, free), strict=True):
        divided = [np.exp(row[c]) / p_free[c] for c in range(4)]
        assert np.exp(found) == pytest.approx([d / sum(divided) for d in divided])
    assert contextual(logp - 3.0, free + np.array([[5.0], [0.0], [-9.0]])) == pytest.approx(contextual(logp, free))


def test_contextual_calibration_takes_out_the_bias_and_nothing_else() -> None:
    logp, gold = draw(500, 1.0, n_labels=2)
    bias = np.array([0.0, 3.0])
    assert np.exp(contextual(bias[None], bias[None])) == pytest.approx(0.5)
    assert contextual(logp, np.zeros((3, 2))) == pytest.approx(logp)
    assert contextual(logp + bias, bias[None]) == pytest.approx(logp)
    biased, mended = ((x.argmax(-1) == gold).mean() for x in (logp + bias, contextual(logp + bias, bias[None])))
    assert mended > biased + 0.1


def test_far_log_probabilities_stay_finite() -> None:
    logp = np.array([[0.0, -2000.0], [-2000.0, 0.0]])
    assert np.isfinite(contextual(logp, logp[:1])).all()
    assert np.isfinite(scale(logp, 0.05)).all()
    assert np.isfinite(fit_temperature(logp, np.array([0, 0])))
