"""Cells, what they say together, and calibration that needs no training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import example_rows

from ia2.comparison import CONTEXTUAL, TEMPERATURE, UNLABELLED, Cell, compare, content_free
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.evaluation import Variant, answer
from ia2.files import read_jsonl
from ia2.models import LanguageModel
from ia2.run import Data

ROWS = example_rows(30)
METHODS = ("sft", "ia2-sft", f"ia2-sft{UNLABELLED}")
NAMES = ["zero-shot", "icl", "sft", "ia2", "ia2-sft", f"ia2{UNLABELLED}", f"ia2-sft{UNLABELLED}"]
RECALIBRATED = [f"icl{TEMPERATURE}", f"icl{CONTEXTUAL}", f"sft{TEMPERATURE}"]


def cell(folder: Path, seed: int = 0) -> Cell:
    options = {"model": "tiny", "labels": ("0", "1"), "num_train_epochs": 1, "learning_rate": (1e-2,)}
    extra = (Example("Text:soup soup soup\nLabel:"),)
    tests = {"test": ROWS[8:14], "other": [replace(row, query=f"{row.query} ") for row in ROWS[14:18]]}
    return Cell("mine", seed, options, Data(ROWS[:4], ROWS[4:8], extra), tests, folder / f"cell-{seed}")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    from conftest import random_model

    from ia2.models import wrap_model
    from ia2.world.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("compared")
    lm = wrap_model(random_model("llama"), build_tokenizer())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ia2.comparison.MIN_ROWS", 4)
        return folder, compare(folder, [cell(folder, seed) for seed in (0, 1)], METHODS, lm=lm)


def test_every_method_is_there_on_every_test(compared: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = compared
    assert set(metrics["methods"]) == {*NAMES, *RECALIBRATED}
    assert set(metrics["out_of_distribution"]) == {"other"}
    assert set(metrics["out_of_distribution"]["other"]["methods"]) == {*NAMES, *RECALIBRATED}
    assert metrics["methods"]["sft"]["n"] == 2 * 6
    assert metrics["methods"]["sft"]["training_seconds"] > 0
    assert [c["seed"] for c in metrics["cells"]] == [0, 1]
    assert (folder / "report.html").is_file()
    rows = read_jsonl(folder / "predictions.jsonl")
    assert len(rows) == 2 * (6 + 4) * len(metrics["methods"])


def test_a_pooled_metric_is_the_mean_of_the_cells(compared: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = compared
    rows = [row for row in read_jsonl(folder / "predictions.jsonl") if row["test"] == "test"]
    for name in NAMES:
        own = [np.mean([r["nll"] for r in rows if r["variant"] == name and r["seed"] == seed]) for seed in (0, 1)]
        assert metrics["methods"][name]["nll"]["value"] == pytest.approx(np.mean(own))


def test_differences_are_paired_and_corrected(compared: tuple[Path, dict[str, Any]]) -> None:
    _, metrics = compared
    assert "ia2-sft - sft" in metrics["differences"]
    assert "sft - icl" in metrics["differences"]
    assert "sft - sft" not in metrics["differences"]
    for values in metrics["differences"].values():
        assert values["accuracy"]["p_value"] <= values["accuracy"]["p_holm"] <= 1
    value = {name: metrics["methods"][name]["nll"]["value"] for name in ("ia2-sft", "sft")}
    assert metrics["differences"]["ia2-sft - sft"]["nll"]["value"] == pytest.approx(value["ia2-sft"] - value["sft"])


def test_a_temperature_changes_no_answer_and_only_the_development_rows_choose_it(
    compared: tuple[Path, dict[str, Any]], lm: LanguageModel
) -> None:
    folder, _ = compared
    rows = [r for r in read_jsonl(folder / "predictions.jsonl") if r["seed"] == 0 and r["test"] == "test"]
    icl, scaled = ([r for r in rows if r["variant"] == name] for name in ("icl", f"icl{TEMPERATURE}"))
    assert [r["answer"] for r in icl] == [r["answer"] for r in scaled]
    odds = [
        [np.log(r["p_labels"]["1"] / r["p_labels"]["0"]) for r in of] for of in (icl, scaled)
    ]  # a temperature divides the log-odds of every row by one number
    ratio = np.array(odds[0]) / np.array(odds[1])
    assert ratio == pytest.approx(np.full(len(ratio), ratio[0]), rel=1e-3)
    run = cell(folder).run_of("sft")
    dev = answer(lm, run.task(), ROWS[4:8], Variant("icl", run.contexts(lm)))
    gold = [a.logp_labels for a in dev]

    def nll(heat: float) -> float:
        z = np.array([[of["0"], of["1"]] for of in gold]) / heat
        z -= np.logaddexp(z[:, 0], z[:, 1])[:, None]
        return float(-np.mean([z[i, int(ROWS[4 + i].label)] for i in range(4)]))

    grid = np.geomspace(0.05, 20, 4000)
    assert ratio[0] == pytest.approx(grid[np.argmin([nll(t) for t in grid])], rel=0.01)


def test_few_development_rows_choose_no_temperature(
    tmp_path: Path, lm: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    few = replace(cell(tmp_path), tests={"test": ROWS[7:9]})
    found, _ = few.results(lm, ("sft",))
    assert "1 of 2 test rows are among those to train or develop with" in capsys.readouterr().err
    assert list(dict.fromkeys(p.variant for p in found["test"])) == ["zero-shot", "icl", "sft", f"icl{CONTEXTUAL}"]
    plain = replace(few, recalibrated=False, folder=tmp_path / "plain").results(lm, ("sft",))[0]["test"]
    assert list(dict.fromkeys(p.variant for p in plain)) == ["zero-shot", "icl", "sft"]


def test_what_is_done_is_not_done_again(
    compared: tuple[Path, dict[str, Any]], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, metrics = compared
    monkeypatch.setattr("ia2.comparison.evaluate", lambda *_: pytest.fail("evaluated again"))
    again = compare(folder, [cell(folder, seed) for seed in (0, 1)], METHODS, lm=lm)
    assert again["methods"] == metrics["methods"]


def test_other_methods_are_not_answered_with_old_results(tmp_path: Path, lm: LanguageModel) -> None:
    few = replace(cell(tmp_path), tests={"test": ROWS[8:10]}, recalibrated=False)
    few.results(lm, ("sft",))
    found, seconds = few.results(lm, ("ia2",))
    assert list(dict.fromkeys(p.variant for p in found["test"])) == ["zero-shot", "icl", "ia2"]
    assert list(seconds) == ["ia2"]
    other, _ = replace(few, tests={"test": ROWS[10:13]}).results(lm, ("ia2",))
    assert [p.query for p in other["test"][:3]] == [row.query for row in ROWS[10:13]]


def test_queries_that_say_nothing_keep_the_form() -> None:
    assert content_free(ROWS[:6]) == [f"Text:{filler}\nLabel:" for filler in ("N/A", "", "[MASK]")]
    assert content_free([Example("ab", "0"), Example("cd", "1")]) == ["N/A", "[MASK]"]


def test_cells_with_other_tests_are_refused(tmp_path: Path, lm: LanguageModel) -> None:
    cells = [cell(tmp_path), replace(cell(tmp_path), tests={"test": ROWS[:2]})]
    with pytest.raises(IA2Error, match="different test sets"):
        compare(tmp_path, cells, METHODS, lm=lm)
