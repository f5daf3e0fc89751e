"""The page of a sweep, read back."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, Page, difference, interval, rows_of

from ia2.report import display_name, write_sweep_report
from ia2.report.numbers import SCORE

NAMES = ("icl", "sft", "ia2-sft", "ia2-sft+unlabelled")


def row(name: str, task: str = "mood", n: int = 4, **more: Any) -> dict[str, Any]:
    k = NAMES.index(name)
    values = {"accuracy": interval(0.5 + 0.1 * k + n / 100), "ece": interval(0.3 - 0.05 * k, 0.01)}
    return {
        "model": "tiny",
        "adapter": "lora",
        "n": n,
        "ood": False,
        "task": task,
        "method": name,
        "n_cells": 6,
        **values,
        **more,
    }


def pair(p: float, accuracy: float = 0.1, **more: Any) -> dict[str, Any]:
    values = {name: {**of, "p_holm": p} for name, of in difference(interval(accuracy), interval(0.0)).items()}
    names = {"method": "ia2-sft+unlabelled", "minus": "sft"}
    return {"model": "tiny", "adapter": "lora", "n": 4, "ood": False, "n_cells": 6, **names, **values, **more}


def rows(n: tuple[int, ...] = (4, 8), tasks: tuple[str, ...] = ("all tasks", "mood", "food"), **more: Any) -> list[Any]:
    return [row(name, task, size, **more) for size in n for task in tasks for name in NAMES]


def page(
    path: Path,
    methods: Any,
    differences: Any = (),
    failed: Any = (),
    n_cells: int = 12,
    costs: Any = (),
    samples: Any = (),
) -> Page:
    write_sweep_report(path / "report.html", methods, differences, costs, samples, dict(failed), n_cells)
    return Page(path / "report.html")


def test_a_line_a_method_over_n_and_a_panel_a_task(tmp_path: Path) -> None:
    found = page(tmp_path, rows(n=(8, 4)))
    panels = [
        f"{what} of each method on {task}" for what in ("Accuracy", "ECE") for task in ("all tasks", "mood", "food")
    ]
    assert list(found.figures) == panels
    for label, figure in found.figures.items():
        key = "ece" if label.startswith("ECE") else "accuracy"
        assert [trace["name"] for trace in figure["data"]] == [display_name(name) for name in NAMES]
        for name, trace in zip(NAMES, figure["data"], strict=True):
            assert trace["y"] == [row(name, n=n)[key]["value"] for n in (4, 8)]
            assert trace["error_y"]["array"] == pytest.approx(2 * [row(name)[key]["high"] - row(name)[key]["value"]])
            assert trace["error_y"]["arrayminus"] == pytest.approx(trace["error_y"]["array"])
            assert trace["x"] == pytest.approx([4, 8], rel=0.1)
            assert [text.split(":")[0] for text in trace["text"]] == ["N = 4", "N = 8"]
    assert len({str(figure["layout"]["yaxis"]["range"]) for figure in found.figures.values()}) == 2  # one a section
    assert "mean over 6 cells" in found.text


def test_a_single_n_has_a_row_a_method(tmp_path: Path) -> None:
    found = page(tmp_path, rows(n=(4,), tasks=("mood",)))
    traces = found.figure("ECE of")["data"]
    assert [trace["x"] for trace in traces] == [[row(name)["ece"]["value"]] for name in NAMES]
    assert "%" not in traces[0]["text"][0]
    assert "%" in found.figure("Accuracy of")["data"][0]["text"][0]
    assert "class=key" not in found.own


def test_a_method_has_one_colour_everywhere(tmp_path: Path) -> None:
    found = page(tmp_path, rows())
    colours = {(trace["name"], trace["line"]["color"]) for figure in found.figures.values() for trace in figure["data"]}
    assert len(colours) == len(NAMES)
    assert all(colour in found.own for _, colour in colours)


def test_the_table_has_every_value_and_the_best_accuracy_in_bold(tmp_path: Path) -> None:
    methods = [of for of in rows(tasks=("mood",)) if (of["n"], of["method"]) != (8, "icl")]
    found = page(tmp_path, methods)
    assert re.findall("<strong>(.*?)</strong>", found.own) == ["84.0", "88.0"]
    lines = re.findall(r'<tr><th scope="row">(.*?)</tr>', found.own)
    assert [re.findall(r"<td>(?:<strong>)?([\d.]*)", line) for line in lines] == [
        ["54.0", "64.0", "74.0", "84.0"],
        ["", "68.0", "78.0", "88.0"],
    ]
    assert "N = 8" in lines[1]
    assert "ECE 0.250" in lines[1]


@pytest.mark.parametrize(
    ("p", "says"), [(0.049, "p\u00a0=\u00a00.049: a difference"), (0.05, "p\u00a0=\u00a00.050: no difference that")]
)
def test_the_verdict_is_of_the_best_trained_method_and_goes_by_the_corrected_p(
    p: float, says: str, tmp_path: Path
) -> None:
    pairs = [pair(1.0, method="ia2-sft"), pair(p), pair(p, 0.2, minus="icl")]
    found = page(tmp_path, rows(n=(4,)), pairs)
    lead = (
        "N = 4: of what is trained, IA2→SFT + unlabelled is the most accurate (84.0 [79.0, 89.0]%); against SFT +10.0"
    )
    assert lead in found.text
    assert found.text.count(says) == 2
    assert "against ICL +20.0 [+15.0, +25.0] points" in found.text


def test_the_verdict_begins_with_all_n(tmp_path: Path) -> None:
    def lead(low: float, p: float) -> str:
        of = {"method": "ia2-sft", "accuracy": {"value": 0.05, "low": low, "high": 0.08}, "p_holm": p}
        write_sweep_report(tmp_path / "report.html", rows(), [pair(0.5), pair(0.5, n=8)], (), (), {}, 12, [of])
        own = Page(tmp_path / "report.html").own
        assert own.index('class="lead"') < own.index("<li data-n")
        return re.search('<p class="lead">(.*?)</p>', own)[1].replace("\u00a0", " ")  # type: ignore[index]

    better = "Over N = 4, 8: <b>IA2→SFT</b> is more accurate than <b>SFT</b>: +5.0 [+2.0, +8.0] points, p = 0.010."
    assert lead(0.02, 0.01) == better
    assert lead(0.02, 0.06).startswith("Over N = 4, 8: no difference of <b>IA2→SFT</b> and <b>SFT</b>")
    assert lead(-0.01, 0.01).startswith("Over N = 4, 8: no difference")


def test_differences_have_their_setting_interval_and_p(tmp_path: Path) -> None:
    pairs = [pair(0.0002), pair(0.5, ood=True, n_cells=1)]
    found = page(tmp_path, [*rows(n=(4,)), *rows(n=(4,), ood=True)], pairs)
    table = found.own[found.own.index("<h2>Differences") :]
    assert "IA2→SFT + unlabelled minus SFTN = 4 · in distribution · mean over 6 cells" in found.text
    assert "N = 4 · out of distribution · one cell" in table
    assert "<strong>+10.0</strong> better<small>[+5.0, +15.0]</small><small>p\u00a0&lt;\u00a00.001</small>" in table
    assert "on mood (out of distribution)" in " ".join(found.figures)


def test_what_failed_is_there_with_its_reason(tmp_path: Path) -> None:
    found = page(tmp_path, rows(), failed={"tiny_sst2_n4": "IA2Error: no rows"}, n_cells=30)
    assert "cells: 30, failed in whole or in part: 1" in found.text
    assert "tiny_sst2_n4" in found.text
    assert "IA2Error: no rows" in found.text
    assert "What failed" not in page(tmp_path, rows()).own


def test_several_models_and_adapters_stand_apart(tmp_path: Path) -> None:
    methods = [*rows(tasks=("mood",)), *rows(tasks=("mood",), model="other"), *rows(tasks=("mood",), adapter="ia3")]
    labels = [label for label in page(tmp_path, methods).figures if label.startswith("Accuracy")]
    assert [label.split(" on mood ")[1] for label in labels] == ["(tiny · lora)", "(other · lora)", "(tiny · ia3)"]


def test_text_from_data_stays_text(tmp_path: Path) -> None:
    hostile = {"model": HOSTILE, "adapter": HOSTILE}
    methods = [*rows(tasks=(HOSTILE,), **hostile), row("sft") | {"method": HOSTILE}]
    pairs = [pair(0.1, **hostile), pair(0.1, **hostile) | {"minus": HOSTILE}]
    found = page(tmp_path, methods, pairs, {HOSTILE: HOSTILE})
    assert "<script>alert" not in found.own
    assert found.text.count(HOSTILE) > 10
    assert len([tag for tag, _ in found.tags if tag == "script"]) == 2 + len(found.figures)
    assert any(
        "&lt;script&gt;" in trace["name"]
        for trace in next(iter(found.figures.values()))["data"]
        + found.figure("Accuracy of each method on mood")["data"]
    )


def test_it_asks_the_network_for_nothing(tmp_path: Path) -> None:
    found = page(tmp_path, rows(), [pair(0.1)], {"a": "b"})
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|<img", found.own)


def test_costs_are_of_each_n_and_say_when_a_training_pays(tmp_path: Path) -> None:
    costs = [
        {
            "method": name,
            "n": n,
            "tokens_per_query": tokens * n,
            "seconds_per_query": ms / 1e3,
            "training_seconds": spent,
        }
        for n in (4, 8)
        for name, tokens, ms, spent in (("icl", 10, 8.0, math.nan), ("sft", 1, 2.0, 0.6 * n), ("ia2-sft", 1, 8.0, 3.0))
    ]
    found = page(tmp_path, rows(), costs=costs)
    table = found.own[found.own.index("<h2>Cost") :]
    assert [title for title in ("N = 4", "N = 8") if f"{title}</span></th>" in table] == ["N = 4", "N = 8"]
    icl, sft, ia2_sft = re.findall(r"<tr>(.*?)</tr>", table)[1:4]
    assert re.findall(r"(\d+) tokens", icl) == ["40", "80"]
    assert re.findall(r"pays after (\d+) queries", sft) == ["400", "800"]
    told = page(tmp_path, rows(), [pair(0.1, n=n, method="ia2-sft") for n in (4, 8)], costs=costs)
    assert ["a query takes 1/10 of the tokens of ICL." in li for li in re.findall("<li data-n.*?</li>", told.own)] == [
        True
    ] * 2
    assert ("training" in icl, "pays" in icl, "pays" in ia2_sft, "3 s of training" in ia2_sft) == (
        False,
        False,
        False,
        True,
    )


def test_each_n_is_shown_closer_and_the_largest_at_first(tmp_path: Path) -> None:
    methods = [*rows(n=(8,), ece=interval(0.2, 0.01)), *rows(n=(4,), ece=interval(0.1, 0.02))]
    samples = [(n, rows_of(NAMES, 2 * n + 2, task="mood", seed=n)) for n in (8, 4)]
    found = page(tmp_path, methods, samples=samples)
    for name in NAMES:
        for ece in (interval(0.2, 0.01), interval(0.1, 0.02)):
            assert f"Reliability diagram of {display_name(name)}, ECE {SCORE.interval(ece)}" in found.figures
    assert len(found.figure("Share of wrong answers")["data"]) == len(NAMES)
    assert "6 of the 6 queries, of 18, that methods answer differently" in found.text
    assert ("mood, seed 8" in found.text, "mood, seed 4" in found.text) == (True, False)
    parts = [(of["data-n"], "hidden" in of) for tag, of in found.tags if tag == "div" and "data-n" in of]
    assert parts == [("8", False), ("4", True)] * 2 + [("8", False)]
