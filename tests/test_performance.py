"""Correlations of similarity with performance where they are known: planted, planted by the task alone, and none."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LinearRegression

from ia2.analysis import similarity_and_performance
from ia2.errors import IA2Error

CELL = {"model": "tiny", "adapter": "lora"}


def table(within: float, between: float, n_tasks: int = 8, noise: float = 0.03, seed: int = 0) -> pd.DataFrame:
    """Accuracy rises with similarity within tasks and with that of the task; the ECE falls with it."""
    rng, rows = np.random.default_rng(seed), []
    for k in range(n_tasks):
        of_task = rng.normal()
        for n in (4, 16):
            for s in range(3):
                for method in ("sft", "ia2-sft", "icl-distill"):
                    own = rng.normal()
                    accuracy = 0.5 + 0.1 * (within * own + between * of_task) + noise * rng.normal() + 0.01 * n
                    row = {"task": f"t{k}", "n": n, "seed": s, "method": method, "accuracy": accuracy}
                    rows.append({**CELL, **row, "similarity": 0.7 + 0.1 * (own + of_task), "ece": 1 - accuracy})
    return pd.DataFrame(rows)


def excludes_zero(interval: dict[str, float]) -> bool:
    return interval["low"] > 0 or interval["high"] < 0


@pytest.mark.parametrize(
    ("within", "between", "raw", "partial"),
    [(1, 1, True, True), (0, 1, True, False), (0, 0, False, False)],
    ids=["planted", "by the task alone", "none"],
)
def test_a_planted_correlation_is_found_and_one_by_the_task_alone_is_told_from_it(
    within: float, between: float, raw: bool, partial: bool
) -> None:
    found = similarity_and_performance(table(within, between))
    for metric, sign in (("accuracy", 1), ("ece", -1)):
        of = found[metric]
        assert [excludes_zero(of[kind]) for kind in ("pearson", "spearman", "partial")] == [raw, raw, partial]
        if raw:
            assert sign * of["pearson"]["value"] > 0.4
        if partial:
            assert sign * of["partial"]["value"] > 0.9


def test_values_are_those_of_scipy_and_of_scikit_learn() -> None:
    rows = table(0.3, 1)
    others = rows.assign(accuracy=0.0, similarity=1.0)
    untrained = pd.concat([others.assign(method=name) for name in ("icl", "icl+contextual", "zero-shot")])
    found = similarity_and_performance(pd.concat([untrained, rows], ignore_index=True))
    assert len(found["points"]) == len(rows) == 8 * 2 * 3 * 3
    assert found["points"][0] == rows.iloc[0].to_dict()
    assert found["n_tasks"] == 8
    dummies = pd.get_dummies(rows[["task", "n"]].astype(str)).to_numpy(float)
    x, y = (
        rows[name].to_numpy() - LinearRegression().fit(dummies, rows[name]).predict(dummies)
        for name in ("similarity", "accuracy")
    )
    of = found["accuracy"]
    assert of["pearson"]["value"] == pytest.approx(pearsonr(rows["similarity"], rows["accuracy"]).statistic)
    assert of["spearman"]["value"] == pytest.approx(spearmanr(rows["similarity"], rows["accuracy"]).statistic)
    assert of["partial"]["value"] == pytest.approx(pearsonr(x, y).statistic)
    for kind in ("pearson", "spearman", "partial"):
        assert of[kind]["low"] < of[kind]["value"] < of[kind]["high"]


def test_intervals_are_over_tasks_not_over_rows() -> None:
    """The same rows four times over know no more."""
    rows = table(0.3, 1)
    once, often = (similarity_and_performance(pd.concat([rows] * k)) for k in (1, 4))
    for end in ("low", "high"):
        assert often["accuracy"]["pearson"][end] == pytest.approx(once["accuracy"]["pearson"][end])


def test_what_does_not_vary_goes_with_nothing() -> None:
    nothing: dict[str, Any] = {"value": 0.0, "low": 0.0, "high": 0.0}
    found = similarity_and_performance(table(1, 1).assign(ece=0.25))
    assert found["ece"] == {"pearson": nothing, "spearman": nothing, "partial": nothing}


def test_a_recalibrated_method_is_no_point_of_its_own() -> None:
    rows = table(1, 1)
    again = rows[rows.method == "sft"].assign(method="sft+temperature", ece=0.0)
    assert similarity_and_performance(pd.concat([rows, again])) == similarity_and_performance(rows)


def test_two_tasks_are_too_few() -> None:
    with pytest.raises(IA2Error, match="found trained methods on 2 tasks; expected at least 3"):
        similarity_and_performance(table(1, 1, n_tasks=2))
