"""Intervals and tests against SciPy and naive versions, and how often they err where nothing differs."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from ia2.metrics import ece
from ia2.statistics import Array, bootstrap, holm, intervals, jackknife, mcnemar, mean, paired, permutation_test, wilson

N_SIMULATED = 200
MOST = stats.binom.ppf(0.999, N_SIMULATED, 0.05)  # rejections of a test at 0.05 that errs as often as it may


def test_the_bootstrap_interval_of_a_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, 400)
    interval = bootstrap(mean, values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_the_bootstrap_equals_a_naive_one() -> None:
    rng = np.random.default_rng(3)
    confidence, correct = rng.random(40), (rng.random(40) < 0.5).astype(float)
    draws = []
    for _ in range(3000):
        rows = [int(rng.integers(40)) for _ in range(40)]
        draws.append(float(ece(confidence[rows], correct[rows])))
    interval = bootstrap(ece, confidence, correct)
    assert interval.low == pytest.approx(np.quantile(draws, 0.025), abs=0.015)
    assert interval.high == pytest.approx(np.quantile(draws, 0.975), abs=0.015)


def test_the_jackknife_covers_where_a_bootstrap_does_not() -> None:
    """The share of different values, which a bootstrap makes less by drawing rows twice."""
    rng = np.random.default_rng(3)
    samples = [(rng.pareto(1, 100) * 10).astype(int).tolist() for _ in range(N_SIMULATED)]
    mean_share = np.mean([len(set(sample)) / 100 for sample in samples])
    found = [jackknife(lambda rows: len(set(rows)) / len(rows), sample) for sample in samples]
    assert np.mean([of.low <= mean_share <= of.high for of in found]) > 0.9
    drawn = [
        np.quantile([len(set(rng.choice(sample, 100))) / 100 for _ in range(100)], 0.975) for sample in samples[:20]
    ]
    assert np.mean(np.array(drawn) < mean_share) > 0.9


def test_statistics_together_are_those_alone() -> None:
    rng = np.random.default_rng(4)
    confidence, correct = rng.random(60), (rng.random(60) < 0.5).astype(float)
    groups = rng.integers(3, size=60).tolist()
    for chosen in (None, groups):
        together = intervals({"accuracy": (mean, [correct]), "ece": (ece, [confidence, correct])}, chosen)
        assert together["accuracy"] == bootstrap(mean, correct, groups=chosen)
        assert together["ece"] == bootstrap(ece, confidence, correct, groups=chosen)


def test_groups_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    groups = [g for g in range(6) for _ in range(100)]
    values = np.array([0.5 + 0.1 * (g - 2.5) for g in groups]) + rng.normal(0, 0.1, 600)
    plain, grouped = bootstrap(mean, values), bootstrap(mean, values, groups=groups)
    assert grouped.value == pytest.approx(plain.value)
    assert grouped.high - grouped.low > 3 * (plain.high - plain.low)
    between = np.std([values[100 * g : 100 * g + 100].mean() for g in range(6)]) / np.sqrt(6)
    assert grouped.high - grouped.low == pytest.approx(2 * 1.96 * between, rel=0.15)


def test_a_paired_interval_is_narrower_than_the_rows_scatter() -> None:
    rng = np.random.default_rng(5)
    b = rng.normal(0, 5, 200)
    a = b + rng.normal(1, 0.1, 200)
    interval = intervals({"gap": paired(mean, [a], [b])})["gap"]
    alone = bootstrap(mean, a - b)
    assert (interval.value, interval.low, interval.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert interval.high - interval.low < 0.05
    assert interval.low < 1 < interval.high


def test_mcnemar_is_a_sign_test_of_the_rows_that_differ() -> None:
    rng = np.random.default_rng(6)
    for n in (1, 5, 40, 3000):
        a, b = (rng.random(n) < 0.7).astype(float), (rng.random(n) < 0.6).astype(float)
        wins, losses = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
        expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(np.ones(5), np.ones(5)) == 1
    assert mcnemar(np.ones(10), np.zeros(10)) == pytest.approx(2 / 2**10)


def test_permutations_of_few_rows_are_all_tried_as_scipy_does() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.normal(0.4, 1, 9), rng.normal(0, 1, 9)
    expected = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples").pvalue
    assert permutation_test(mean, [a], [b]) == pytest.approx(expected)


def test_permutations_of_many_rows_are_drawn() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.normal(0.12, 1, 300), rng.normal(0, 1, 300)
    expected = stats.ttest_rel(a, b).pvalue
    assert 0.01 < expected < 0.5
    assert permutation_test(mean, [a], [b]) == pytest.approx(expected, abs=0.03)
    assert permutation_test(mean, [a + 9], [b]) == pytest.approx(1 / 4096)  # never 0


def test_permutations_of_a_statistic_that_is_no_mean_equal_naive_ones() -> None:
    rng = np.random.default_rng(9)
    a, b = ([rng.random(8), (rng.random(8) < p).astype(float)] for p in (0.9, 0.2))
    gaps = []
    for assignment in range(2**8):
        kept = np.array([assignment >> i & 1 for i in range(8)], bool)
        first, second = ([np.where(k, x, y) for x, y in zip(a, b, strict=True)] for k in (kept, ~kept))
        gaps.append(abs(float(ece(*first)) - float(ece(*second))))
    observed = abs(float(ece(*a)) - float(ece(*b)))
    assert permutation_test(ece, a, b) == pytest.approx(np.mean([gap >= observed - 1e-12 for gap in gaps]))


def test_groups_are_what_is_permuted() -> None:
    groups = [g for g in range(8) for _ in range(50)]
    gaps = np.array([1.0, 2.0, 1.5, 0.5, 2.5, 1.0, 3.0, 2.0])[groups]
    assert permutation_test(mean, [gaps], [np.zeros(400)], groups) == pytest.approx(2 / 2**8)
    one = permutation_test(mean, [gaps], [np.zeros(400)], [0] * 400)
    assert one == 1  # a single seed says nothing of others
    unequal = [0] * 390 + [1] * 10
    lasting = np.where(np.array(unequal) == 0, 1.0, -1.0)  # group means cancel, whatever the number of rows
    assert permutation_test(mean, [lasting], [np.zeros(400)], unequal) == 1


def rejections(test: Callable[[np.random.Generator], float]) -> int:
    rng = np.random.default_rng(10)
    return sum(test(rng) <= 0.05 for _ in range(N_SIMULATED))


def null_hits(rng: np.random.Generator) -> tuple[Array, Array]:
    hard = rng.random(80)  # rows that one finds hard, the other does too
    return (rng.random(80) < hard).astype(float), (rng.random(80) < hard).astype(float)


def null_seeds(rng: np.random.Generator) -> tuple[Array, list[int]]:
    """Differences that are 0 on average over seeds, but not within one."""
    return np.repeat(rng.normal(0, 1, 8), 10) + rng.normal(0, 0.1, 80), [g for g in range(8) for _ in range(10)]


def groups_test(rng: np.random.Generator) -> float:
    gaps, groups = null_seeds(rng)
    return permutation_test(mean, [gaps], [np.zeros(80)], groups)


def ece_test(rng: np.random.Generator) -> float:
    (a, b), sure = null_hits(rng), rng.random((2, 80))
    return permutation_test(ece, [sure[0, :11], a[:11]], [sure[1, :11], b[:11]])


def test_tests_err_no_more_than_they_may() -> None:
    assert rejections(lambda rng: mcnemar(*null_hits(rng))) <= MOST
    assert (
        1
        <= rejections(lambda rng: permutation_test(mean, rng.normal(0, 1, (1, 11)), rng.normal(0, 1, (1, 11))))
        <= MOST
    )
    assert 1 <= rejections(groups_test) <= MOST
    assert 1 <= rejections(ece_test) <= MOST


def test_rows_that_share_a_seed_are_not_independent() -> None:
    naive = rejections(lambda rng: float(stats.ttest_1samp(null_seeds(rng)[0], 0).pvalue))
    assert naive > 2 * MOST


def test_tests_see_what_is_there() -> None:
    def better(rng: np.random.Generator) -> float:
        return mcnemar((rng.random(200) < 0.8).astype(float), (rng.random(200) < 0.6).astype(float))

    assert rejections(better) > 0.9 * N_SIMULATED
    assert rejections(lambda rng: permutation_test(mean, [rng.normal(1.5, 1, 11)], [rng.normal(0, 1, 11)])) > 150


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for seed in range(100):
        interval = bootstrap(mean, np.random.default_rng(seed).normal(1.0, 1.0, 50), seed=seed)
        held += interval.low <= 1.0 <= interval.high
    assert stats.binom.ppf(0.001, 100, 0.93) <= held <= 100


def test_holm_is_the_largest_that_a_smaller_p_value_asks_for() -> None:
    rng = np.random.default_rng(11)
    for m in (1, 2, 7):
        p = (rng.random(m) ** 3).tolist()
        ranked = sorted(p)
        naive = [max(min(1.0, (m - k) * q) for k, q in enumerate(ranked) if q <= own) for own in p]
        assert holm(p) == pytest.approx(naive)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_finding() -> None:
    found = rejections(lambda rng: min(holm(rng.random(6).tolist())))
    assert found <= MOST < rejections(lambda rng: float(rng.random(6).min()))


def test_wilson_equals_scipy() -> None:
    hits, n = np.array([0.0, 1.0, 7.0, 10.0, 499.0]), np.array([1.0, 3.0, 10.0, 10.0, 500.0])
    low, high = wilson(hits, n)
    for k in range(5):
        expected = stats.binomtest(int(hits[k]), int(n[k])).proportion_ci(method="wilson")
        assert (low[k], high[k]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (low >= 0).all()
    assert (high <= 1).all()
