"""The metrics of predictions: of one variant, and of the difference of two."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ia2.evaluation import Prediction
from ia2.metrics import aurc, classwise_ece, ece, ece_mass, entropy, excess_aurc, macro_f1, mce, reliability
from ia2.statistics import Array, Columns, Statistic, intervals, mcnemar, mean, paired, permutation_test

COMPARED: dict[str, tuple[Statistic, tuple[str, ...]]] = {
    "accuracy": (mean, ("correct",)),
    "ece": (ece, ("confidence", "correct")),
    "nll": (mean, ("nll",)),
    "brier": (mean, ("brier",)),
}


def _column(predictions: Sequence[Prediction], name: str) -> Array:
    return np.array([getattr(p, name) for p in predictions], float)


def _label_measures(predictions: Sequence[Prediction]) -> dict[str, tuple[Statistic, Columns]]:
    labels = sorted({label for p in predictions for label in p.p_labels or {}})
    index = {"": -1} | {label: c for c, label in enumerate(labels)}
    p_NC = np.array([[(p.p_labels or {}).get(label, 0.0) for label in labels] for p in predictions])
    gold_N, answer_N = (np.array([index[getattr(p, key)] for p in predictions]) for key in ("response", "answer"))
    return {
        "macro_f1": (macro_f1, [answer_N, gold_N]),
        "classwise_ece": (classwise_ece, [p_NC, gold_N]),
        "entropy": (mean, [entropy(p_NC)]),
    }


def summarise(predictions: Sequence[Prediction], groups: Sequence[int] | None = None) -> dict[str, Any]:
    """The metrics of one variant, each with its bootstrap interval, its reliability bins over all rows, and its cost.

    What needs label probabilities is there if every prediction has them, and else the rate of unparsable answers is.

    Args:
        predictions: of one variant.
        groups: the cell (task and seed) that each belongs to, for a two-level bootstrap.
    """
    correct, confidence = _column(predictions, "correct"), _column(predictions, "confidence")
    similarity_NL = np.array([p.similarity for p in predictions])
    measures: dict[str, tuple[Statistic, Columns]] = {
        "accuracy": (mean, [correct]),
        "ece": (ece, [confidence, correct]),
        "nll": (mean, [_column(predictions, "nll")]),
        "brier": (mean, [_column(predictions, "brier")]),
        "similarity": (mean, [similarity_NL.mean(1)]),
        "greedy_accuracy": (mean, [_column(predictions, "greedy_correct")]),
        "ece_mass": (ece_mass, [confidence, correct]),
        "mce": (mce, [confidence, correct]),
        "aurc": (aurc, [confidence, correct]),
        "excess_aurc": (excess_aurc, [confidence, correct]),
    }
    if all(p.p_labels for p in predictions):
        measures |= _label_measures(predictions)
    else:
        measures["unparsable_rate"] = (mean, [_column(predictions, "unparsable")])
        measures["ece_p_answer"] = (ece, [_column(predictions, "p_answer"), correct])
    if any(p.score != p.correct for p in predictions):
        measures["score"] = (mean, [_column(predictions, "score")])
    return {
        **{name: asdict(interval) for name, interval in intervals(measures, groups).items()},
        "reliability": reliability(confidence, correct),
        "similarity_by_layer": similarity_NL.mean(0).tolist(),
        "tokens_per_query": float(mean(_column(predictions, "n_tokens"))),
        "seconds_per_query": float(mean(_column(predictions, "seconds"))),
        "n": len(predictions),
    }


def measured(predictions: Sequence[Prediction], groups: Sequence[int] | None = None) -> dict[str, Any]:
    """Of one variant, only what differences are taken of, each with its bootstrap interval; see `summarise`."""
    columns = {name: (f, [_column(predictions, key) for key in keys]) for name, (f, keys) in COMPARED.items()}
    return {name: asdict(interval) for name, interval in intervals(columns, groups).items()}


def difference(a: Sequence[Prediction], b: Sequence[Prediction], groups: Sequence[int] | None = None) -> dict[str, Any]:
    """Metrics of variant `a` minus those of `b` on the same rows, each with its paired bootstrap interval and p-value.

    The p-value of the accuracy is McNemar's, the others' a permutation test's over rows; with groups, each is a
    permutation test's over groups, and speaks of further tasks and seeds.
    """
    if [p.query for p in a] != [p.query for p in b]:
        raise ValueError("a paired difference needs the same rows in the same order")
    compared: dict[str, tuple[Statistic, Columns, Columns]] = {
        name: (statistic, [_column(a, key) for key in keys], [_column(b, key) for key in keys])
        for name, (statistic, keys) in COMPARED.items()
    }
    found = intervals({name: paired(*columns) for name, columns in compared.items()}, groups)

    def p_value(name: str) -> float:
        statistic, columns_a, columns_b = compared[name]
        if name == "accuracy" and groups is None:
            return mcnemar(*columns_a, *columns_b)
        return permutation_test(statistic, columns_a, columns_b, groups)

    return {name: {**asdict(interval), "p_value": p_value(name)} for name, interval in found.items()}
