"""Metrics against scikit-learn, SciPy and naive loops, and what must hold for every one of them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, f1_score, log_loss

from ia2.metrics import (
    aurc,
    break_even,
    brier,
    classwise_ece,
    ece,
    ece_mass,
    entropy,
    excess_aurc,
    macro_f1,
    mass_bins,
    mce,
    nll,
    reliability,
)
from ia2.statistics import Array, mean, wilson


def naive_gaps(confidence: Array, correct: Array, edges: list[tuple[float, float]]) -> list[tuple[int, float]]:
    """Rows and |accuracy - mean confidence| of the bins (above, up to)."""
    found = []
    for k, (low, high) in enumerate(edges):
        rows = [i for i, c in enumerate(confidence) if low < c <= high or (k == 0 and c == 0)]
        if rows:
            accuracy = sum(correct[i] for i in rows) / len(rows)
            found.append((len(rows), abs(accuracy - sum(confidence[i] for i in rows) / len(rows))))
    return found


WIDTHS = [(k / 15, (k + 1) / 15) for k in range(15)]


def naive_ece(confidence: Array, correct: Array) -> float:
    return sum(n * gap for n, gap in naive_gaps(confidence, correct, WIDTHS)) / len(confidence)


def naive_mce(confidence: Array, correct: Array) -> float:
    return max(gap for _, gap in naive_gaps(confidence, correct, WIDTHS))


def naive_ece_mass(confidence: Array, correct: Array) -> float:
    """The same over the share of rows that are no surer, in place of the confidence."""
    n, gaps = len(confidence), [0.0] * 15
    for c, hit in zip(confidence, correct, strict=True):
        up_to = sum(other <= c for other in confidence)
        gaps[next(k for k in range(15) if up_to * 15 <= (k + 1) * n)] += c - hit
    return sum(abs(gap) for gap in gaps) / n


def naive_aurc(confidence: Array, correct: Array) -> float:
    risks = []
    for threshold in confidence:
        kept = [hit for c, hit in zip(confidence, correct, strict=True) if c >= threshold]
        risks.append(1 - sum(kept) / len(kept))
    return sum(risks) / len(risks)


def naive_excess_aurc(confidence: Array, correct: Array) -> float:
    best = sorted(correct, reverse=True)
    return naive_aurc(confidence, correct) - naive_aurc(-np.arange(len(best), dtype=float), np.array(best))


NAIVE = {ece: naive_ece, ece_mass: naive_ece_mass, mce: naive_mce, aurc: naive_aurc, excess_aurc: naive_excess_aurc}
METRICS = pytest.mark.parametrize("metric", NAIVE, ids=lambda metric: metric.__name__)
ROWS = st.lists(
    st.tuples(st.one_of(st.integers(0, 30).map(lambda k: k / 30), st.floats(0, 1)), st.booleans()), min_size=1
)


def columns(rows: list[tuple[float, bool]]) -> tuple[Array, Array]:
    return np.array([c for c, _ in rows]), np.array([float(hit) for _, hit in rows])


@METRICS
@settings(max_examples=40, deadline=None)
@given(rows=ROWS, random=st.randoms(use_true_random=False))
def test_equal_to_naive_within_range_and_whatever_the_order(metric: Callable[..., Array], rows, random) -> None:  # type: ignore[no-untyped-def]
    value = float(metric(*columns(rows)))
    assert value == pytest.approx(NAIVE[metric](*columns(rows)), abs=1e-9)
    assert -1e-9 <= value <= 1 + 1e-9
    random.shuffle(rows)
    assert metric(*columns(rows)) == pytest.approx(value, abs=1e-9)


@METRICS
def test_a_count_is_a_row_that_often(metric: Callable[..., Array]) -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.integers(0, 20, 40) / 20, (rng.random(40) < 0.6).astype(float)
    counts = rng.integers(0, 4, (2, 3, 40)).astype(float)
    values = metric(confidence, correct, counts=counts)
    assert values.shape == (2, 3)
    for at in np.ndindex(2, 3):
        repeated = np.repeat(np.arange(40), counts[at].astype(int))
        assert values[at] == pytest.approx(float(metric(confidence[repeated], correct[repeated])), abs=1e-12)


@METRICS
def test_perfect_and_worst(metric: Callable[..., Array]) -> None:
    assert metric(np.ones(20), np.ones(20)) == 0
    worst = {aurc: 1.0, excess_aurc: 0.0}.get(metric, 0.9)
    assert metric(np.full(20, 0.9), np.zeros(20)) == pytest.approx(worst)


def test_ece_equals_a_naive_one() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 7, 400):
        confidence, correct = rng.random(n), (rng.random(n) < 0.6).astype(float)
        assert ece(confidence, correct) == pytest.approx(naive_ece(confidence, correct), abs=1e-12)
    edges = np.array([0.0, 1.0, 0.5, 1 / 3])
    assert ece(edges, np.array([0.0, 1.0, 1.0, 0.0])) == pytest.approx(naive_ece(edges, np.array([0.0, 1.0, 1.0, 0.0])))


def test_bins_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    confidence = np.concatenate([rng.random(300), np.arange(1, 16) / 15])
    correct = (rng.random(315) < confidence).astype(float)
    accuracy, sure = calibration_curve(correct, confidence, n_bins=15)
    records = reliability(confidence, correct)
    assert [r["accuracy"] for r in records] == pytest.approx(accuracy)
    assert [r["confidence"] for r in records] == pytest.approx(sure)
    assert mce(confidence, correct) == pytest.approx(abs(accuracy - sure).max())
    assert sum(r["n"] for r in records) == 315
    weighted = sum(r["n"] * abs(r["confidence"] - r["accuracy"]) for r in records) / 315
    assert ece(confidence, correct) == pytest.approx(weighted)


def test_reliability_bins_that_hold_no_row_are_left_out() -> None:
    low, high = wilson(np.array(1.0), np.array(3.0))
    record = {"from": 11 / 15, "to": 12 / 15, "confidence": 0.75, "accuracy": 1 / 3, "low": low, "high": high, "n": 3}
    assert reliability(np.full(3, 0.75), np.array([1.0, 0.0, 0.0])) == [pytest.approx(record)]


def test_mass_bins_hold_equally_many_rows_and_ties_stay_together() -> None:
    confidence = np.random.default_rng(1).random(60) ** 3
    assert np.bincount(mass_bins(confidence)).tolist() == [4] * 15
    assert (np.diff(mass_bins(np.sort(confidence))) >= 0).all()
    assert len(set(mass_bins(np.full(60, 0.7)))) == 1


def test_ece_mass_sees_what_equal_width_averages_away() -> None:
    confidence, correct = np.repeat([0.94, 1.0], 100), np.ones(200)
    correct[100:112] = 0  # right in 100 of 100 where 94 are promised, in 88 of 100 where 100 are
    assert ece(confidence, correct) == pytest.approx(0.03)
    assert ece_mass(confidence, correct) == pytest.approx(0.09)


def test_aurc_rewards_doubt_in_the_right_place() -> None:
    correct = np.array([1.0, 1.0, 1.0, 0.0])
    order = np.array([0.9, 0.8, 0.7, 0.6])
    assert excess_aurc(order, correct) == pytest.approx(0)
    assert aurc(order, correct) == pytest.approx(1 / 16)
    assert aurc(order[::-1], correct) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert aurc(np.full(4, 0.5), correct) == pytest.approx(1 / 4)


@pytest.fixture
def labelled() -> tuple[Array, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.dirichlet(np.ones(4), 120), rng.integers(0, 4, 120)


def test_label_metrics_equal_those_of_the_libraries(labelled: tuple[Array, np.ndarray]) -> None:
    p_NC, gold = labelled
    assert nll(np.log(p_NC), gold).mean() == pytest.approx(log_loss(gold, p_NC))
    assert brier(p_NC, gold).mean() == pytest.approx(brier_score_loss(gold, p_NC, scale_by_half=False, labels=range(4)))
    assert macro_f1(p_NC.argmax(1), gold) == pytest.approx(f1_score(gold, p_NC.argmax(1), average="macro"))
    assert entropy(p_NC) == pytest.approx(scipy_entropy(p_NC, axis=1))
    by_label = [naive_ece(p_NC[:, c], (gold == c).astype(float)) for c in range(4)]
    assert classwise_ece(p_NC, gold) == pytest.approx(sum(by_label) / 4)


def test_label_metrics_with_counts(labelled: tuple[Array, np.ndarray]) -> None:
    p_NC, gold = labelled
    answers, counts = p_NC.argmax(1), np.random.default_rng(3).integers(0, 3, (5, 120)).astype(float)
    for i in range(5):
        rows = np.repeat(np.arange(120), counts[i].astype(int))
        assert macro_f1(answers, gold, counts=counts)[i] == pytest.approx(float(macro_f1(answers[rows], gold[rows])))
        assert classwise_ece(p_NC, gold, counts=counts)[i] == pytest.approx(
            float(classwise_ece(p_NC[rows], gold[rows]))
        )
        assert mean(p_NC[:, 0], counts=counts)[i] == pytest.approx(p_NC[rows, 0].mean())


def test_macro_f1_of_no_answer_and_of_labels_that_do_not_occur() -> None:
    gold, answers = np.array([0, 0, 3, 3]), np.array([0, -1, 3, 0])
    assert macro_f1(answers, gold) == pytest.approx(f1_score(gold, answers, average="macro", labels=[0, 3]))
    assert macro_f1(np.full(4, -1), gold) == 0
    assert macro_f1(gold, gold) == 1


def test_a_label_of_another_task_does_not_count(labelled: tuple[Array, np.ndarray]) -> None:
    p_NC, gold = labelled
    wider = np.concatenate([p_NC, np.zeros((120, 3))], 1)
    assert classwise_ece(wider, gold) == classwise_ece(p_NC, gold)


def test_extreme_probabilities() -> None:
    sure = np.eye(3)
    assert entropy(sure) == pytest.approx(0)
    assert entropy(np.full((1, 3), 1 / 3)) == pytest.approx(math.log(3))
    assert brier(sure, np.array([0, 1, 0])) == pytest.approx([0, 0, 2])


def test_queries_that_pay_for_the_training() -> None:
    assert break_even(100, 0.5, 0.25) == 400
    assert break_even(100.1, 0.5, 0.25) == 401
    assert break_even(0, 0.5, 0.25) == 0
    assert break_even(100, 0.25, 0.25) is None
    assert break_even(100, 0.2, 0.25) is None
