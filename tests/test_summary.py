"""The metrics of a method and the difference of two, from predictions."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss
from test_evaluation import predictions

from ia2.evaluation import Prediction
from ia2.summary import difference, summarise


def test_p_values_speak_of_rows_or_of_cells() -> None:
    a, b = predictions([1] * 80 + [0] * 20, 0.8), predictions([1] * 60 + [0] * 40, 0.9)
    gap = difference(a, b)
    assert gap["accuracy"]["p_value"] == pytest.approx(2 / 2**20)  # 20 rows that only `a` has right
    assert gap["ece"]["p_value"] < 0.01
    assert gap["nll"]["p_value"] == 1  # the same on every row
    assert difference(a, b, [0] * 50 + [1] * 50)["accuracy"]["p_value"] == 1  # two cells cannot tell
    assert {metric["p_value"] for metric in difference(a, a).values()} == {1.0}


def labelled(labels: str, n: int, seed: int) -> list[Prediction]:
    rng = np.random.default_rng(seed)
    rows = []
    for i, p in enumerate(rng.dirichlet(np.ones(len(labels)), n)):
        gold, best = int(rng.integers(len(labels))), int(p.argmax())
        p_labels = dict(zip(labels, p.tolist(), strict=True))
        brier = sum((q - (label == labels[gold])) ** 2 for label, q in p_labels.items())
        scores = {"nll": -math.log(p[gold]), "brier": brier, "p_labels": p_labels}
        cost = {"similarity": [1.0, 0.5], "n_tokens": 4, "seconds": 0.5}
        rows.append(
            Prediction(
                "v",
                str(i),
                labels[gold],
                labels[best],
                float(p[best]),
                float(p[best]),
                best == gold,
                False,
                float(best == gold),
                False,
                **scores,
                **cost,  # type: ignore[arg-type]
            )
        )
    return rows


def test_summary_of_label_answers() -> None:
    rows = labelled("abc", 200, 0)
    summary = summarise(rows)
    scalars = {name for name, value in summary.items() if isinstance(value, dict)}
    assert scalars == {
        *("accuracy", "macro_f1", "ece", "ece_mass", "mce", "classwise_ece", "aurc", "excess_aurc"),
        *("nll", "brier", "entropy", "similarity", "greedy_accuracy"),
    }
    for name in scalars - {"similarity", "greedy_accuracy"}:
        assert summary[name]["low"] < summary[name]["high"]
    golds, answers = [p.response for p in rows], [p.answer for p in rows]
    assert summary["macro_f1"]["value"] == pytest.approx(f1_score(golds, answers, average="macro"))
    assert summary["nll"]["value"] == pytest.approx(
        log_loss(golds, [list(p.p_labels.values()) for p in rows])  # type: ignore[union-attr]
    )
    assert sum(record["n"] for record in summary["reliability"]) == summary["n"] == 200
    assert json.loads(json.dumps(summary)) == summary


def test_a_tie_of_labels_is_no_label_in_macro_f1() -> None:
    rows = [replace(p, response="a", answer=text) for p, text in zip(labelled("ab", 2, 0), ("a", ""), strict=True)]
    assert summarise(rows)["macro_f1"]["value"] == pytest.approx(2 / 3)


def test_summary_over_cells_is_the_mean_of_theirs_even_if_labels_differ() -> None:
    cells = [labelled("abc", 50, 0), labelled("xy", 80, 1)]
    pooled = summarise([p for cell in cells for p in cell], [0] * 50 + [1] * 80)
    alone = [summarise(cell) for cell in cells]
    for name in ("accuracy", "macro_f1", "ece", "ece_mass", "classwise_ece", "mce", "aurc", "entropy", "nll"):
        assert pooled[name]["value"] == pytest.approx((alone[0][name]["value"] + alone[1][name]["value"]) / 2)


def test_summary_of_generated_answers_leaves_out_what_they_do_not_have() -> None:
    rows = [
        replace(p, answer=text, unparsable=not text)
        for p, text in zip(predictions([1, 0, 0, 0], 0.5), ("7", "8", "", "9"), strict=True)
    ]
    summary = summarise(rows)
    assert summary["unparsable_rate"]["value"] == 0.25
    assert not {"macro_f1", "classwise_ece", "entropy"} & set(summary)
    assert "unparsable_rate" not in summarise(labelled("abc", 5, 0))
    tie = replace(labelled("abc", 1, 0)[0], similarity=[1.0], answer="")
    assert summarise([*rows, tie])["unparsable_rate"]["value"] == 0.2  # a tie of labels can be parsed
