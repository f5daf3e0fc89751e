"""Metrics against naive versions."""

import numpy as np
import pytest

from ia2.metrics import Array, bootstrap, ece, mean


def naive_ece(confidence: Array, correct: Array, n_bins: int = 15) -> float:
    total = 0.0
    for k in range(n_bins):
        rows = [i for i, c in enumerate(confidence) if k / n_bins < c <= (k + 1) / n_bins or (k == 0 and c == 0)]
        if rows:
            accuracy = sum(correct[i] for i in rows) / len(rows)
            sure = sum(confidence[i] for i in rows) / len(rows)
            total += len(rows) / len(confidence) * abs(accuracy - sure)
    return total


def test_ece_equals_a_naive_one() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 7, 400):
        confidence, correct = rng.random(n), (rng.random(n) < 0.6).astype(float)
        assert ece(confidence, correct) == pytest.approx(naive_ece(confidence, correct), abs=1e-12)
    edges = np.array([0.0, 1.0, 0.5, 1 / 3])
    assert ece(edges, np.array([0.0, 1.0, 1.0, 0.0])) == pytest.approx(naive_ece(edges, np.array([0.0, 1.0, 1.0, 0.0])))


def test_ece_of_known_cases() -> None:
    assert ece(np.full(10, 0.8), np.array([1.0] * 8 + [0.0] * 2)) == pytest.approx(0.0)
    assert ece(np.full(10, 0.9), np.zeros(10)) == pytest.approx(0.9)


def test_ece_of_many_resamples_at_once() -> None:
    rng = np.random.default_rng(1)
    confidence, correct = rng.random((3, 50)), (rng.random((3, 50)) < 0.5).astype(float)
    together = ece(confidence, correct)
    assert together == pytest.approx([float(ece(confidence[i], correct[i])) for i in range(3)])


def test_the_bootstrap_interval_of_a_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, 400)
    interval = bootstrap(mean, values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_the_bootstrap_equals_a_naive_one() -> None:
    values = np.random.default_rng(3).random(40)
    rng = np.random.default_rng(99)
    draws = [np.mean([values[rng.integers(40)] for _ in range(40)]) for _ in range(3000)]
    interval = bootstrap(mean, values)
    assert interval.low == pytest.approx(np.quantile(draws, 0.025), abs=0.01)
    assert interval.high == pytest.approx(np.quantile(draws, 0.975), abs=0.01)


def test_groups_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    groups = [g for g in range(6) for _ in range(100)]
    values = np.array([0.5 + 0.1 * (g - 2.5) for g in groups]) + rng.normal(0, 0.1, 600)
    plain, grouped = bootstrap(mean, values), bootstrap(mean, values, groups=groups)
    assert grouped.value == pytest.approx(plain.value)
    assert grouped.high - grouped.low > 3 * (plain.high - plain.low)
    between = np.std([values[100 * g : 100 * g + 100].mean() for g in range(6)]) / np.sqrt(6)
    assert grouped.high - grouped.low == pytest.approx(2 * 1.96 * between, rel=0.15)
