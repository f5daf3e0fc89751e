"""The report page, read back: its text, its tables, and the data of its figures."""

import gzip
import json
import re
from base64 import b64decode
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from ia2.cli import app
from ia2.errors import IA2Error
from ia2.files import write_json, write_jsonl, write_text
from ia2.report import display_name, write_report
from ia2.report.disagreements import N_ROWS
from ia2.results import print_table, print_verdict, write_results

HOSTILE = "<script>alert(1)</script>"
NAMES = ("zero-shot", "icl", "sft", "soft", "ia2", "ia2-sft", "ia2-sft+unlabelled")


def interval(value: float, width: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def method(k: int) -> dict[str, Any]:
    return {
        "accuracy": interval(0.5 + 0.05 * k),
        "ece": interval(0.3 - 0.03 * k, 0.01),
        "nll": interval(1.0 - 0.1 * k),
        "brier": interval(0.9 - 0.1 * k),
        "similarity": interval(0.6 + 0.03 * k, 0.01),
        "greedy_accuracy": interval(0.5),
        "similarity_by_layer": [0.9, 0.8 + 0.01 * k, 0.5],
        "tokens_per_query": 120.0 if k == 1 else 12.0,
        "seconds_per_query": 0.008 if k == 1 else 0.002,
        "n": 60,
    }


def metrics_of(names: tuple[str, ...] = NAMES, **more: Any) -> dict[str, Any]:
    methods = {name: method(k) for k, name in enumerate(names)}
    return {"model": "tiny", "n_train": 8, "n_test": 60, "methods": methods, "differences": {}, **more}


def difference(accuracy: dict[str, float], ece: dict[str, float]) -> dict[str, Any]:
    return {"accuracy": accuracy, "ece": ece, "nll": interval(-0.2), "brier": interval(0.0)}


def rows_of(names: tuple[str, ...] = NAMES, n: int = 60, **more: Any) -> list[dict[str, Any]]:
    """Row i has confidence 0.5 or 0.9; the last method is always right, every other in two of three rows."""
    rows = []
    for name in names:
        for i in range(n):
            correct = name == names[-1] or i % 3 > 0
            answer, confidence = "good" if correct else "bad", 0.5 if i % 2 else 0.9
            row = {"variant": name, "query": f"query {i}", "response": "good", "answer": answer}
            rows.append({**row, "confidence": confidence, "correct": correct, **more})
    return rows


class Page(HTMLParser):
    """A page: `text` as a reader sees it, `tags`, and `figures`: their labels and data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.plotly = re.findall('<script type="text/plain" id="plotly">(.*?)</script>', self.html)
        self.own = self.html.replace(self.plotly[0], "")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._hidden = "", False
        self.feed(self.own)
        self.close()
        data = [json.loads(d) for d in re.findall(r'<script type="application/json">(.*?)</script>', self.own, re.S)]
        labels = [attributes["aria-label"] for _, attributes in self.tags if attributes.get("class") == "plot"]
        self.figures: dict[str, Any] = dict(zip([str(label) for label in labels], data, strict=True))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data

    def figure(self, start: str) -> Any:
        return next(figure for label, figure in self.figures.items() if label.startswith(start))


def report(path: Path, metrics: dict[str, Any], predictions: list[dict[str, Any]]) -> Page:
    write_report(path, metrics, predictions)
    return Page(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


def cells_of() -> list[dict[str, Any]]:
    methods = {name: method(k) for k, name in enumerate(NAMES)}
    shifted = {**methods, "sft": {**methods["sft"], "accuracy": interval(0.123)}}
    return [
        {"task": task, "description": f"about {task}", "seed": seed, "methods": shifted if task == "food" else methods}
        for task in ("mood", "food")
        for seed in (0, 1)
    ]


def test_it_asks_the_network_for_nothing_and_stays_below_5_mb(path: Path) -> None:
    page = report(path, metrics_of(cells=cells_of()), rows_of(task="mood", seed=0))
    assert path.stat().st_size < 5_000_000
    (packed,) = page.plotly
    assert gzip.decompress(b64decode(packed)).decode() == get_plotlyjs()
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|<img", page.own)
    assert not [attributes for _, attributes in page.tags if attributes.keys() & {"src", "href", "srcset"}]
    policy = next(a["content"] or "" for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_text_from_data_stays_text(path: Path) -> None:
    names = ("icl", HOSTILE)
    cell = {"task": HOSTILE, "description": HOSTILE, "seed": HOSTILE, "methods": metrics_of(names)["methods"]}
    metrics = metrics_of(names, title=HOSTILE, cells=[cell])
    metrics |= {"model": HOSTILE, "differences": {f"{HOSTILE} - icl": difference(interval(0.2), interval(-0.2))}}
    rows = rows_of(names, task=HOSTILE, seed=HOSTILE)
    for row in rows:
        row |= {"query": f"{HOSTILE} {row['query']}", "response": HOSTILE, "answer": f"{HOSTILE}{row['correct']}"}
    page = report(path, metrics, rows)
    data = [a for tag, a in page.tags if tag == "script"]
    assert len(data) == 2 + len(page.figures)  # plotly, ours, and one of data a figure
    assert "<script>alert" not in page.own
    assert page.text.count(HOSTILE) > 20
    # plotly reads a subset of HTML in its texts
    assert "&lt;script&gt;" in page.figure("Accuracy with")["data"][1]["name"]
    assert any(HOSTILE in label for label in page.figures)


def test_every_method_and_figure_is_there(path: Path) -> None:
    pairs = {"ia2-sft - sft": difference(interval(0.1), interval(0.0))}
    page = report(path, metrics_of(cells=cells_of(), differences=pairs), rows_of(task="mood", seed=0))
    labels = list(page.figures)
    kinds = ["Accuracy"] * 3 + ["Reliability"] * len(NAMES) + ["Share", "Cosine"]
    assert [label.split(" ")[0] for label in labels] == kinds
    for name in NAMES:
        assert f"{display_name(name)}" in page.text
        assert any(label.startswith(f"Reliability diagram of {display_name(name)},") for label in labels)
    headings = [text for text in ("Verdict", "Methods", "Differences", "How to read") if f"<h2>{text}" in page.own]
    assert len(headings) == 4
    tables = [tag for tag, _ in page.tags if tag == "table"]
    assert len(tables) == page.own.count("<caption>") == 3
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags


def test_names_for_people() -> None:
    names = ["ia2-sft", "soft+unlabelled", "mine", "mine+unlabelled"]
    assert [display_name(name) for name in names] == [
        "IA2→SFT",
        "soft labels + unlabelled",
        "mine",
        "mine + unlabelled",
    ]


@pytest.mark.parametrize(
    ("accuracy", "ece", "expected"),
    [
        (
            {"value": 0.052, "low": 0.011, "high": 0.09},
            {"value": -0.031, "low": -0.05, "high": -0.012},
            "IA2→SFT is 5.2 points [1.1, 9.0] above SFT in accuracy; "
            "the calibration error of IA2→SFT is 0.031 [0.012, 0.050] lower, which is better",
        ),
        (
            {"value": -0.052, "low": -0.09, "high": -0.011},
            {"value": 0.031, "low": 0.012, "high": 0.05},
            "IA2→SFT is 5.2 points [1.1, 9.0] below SFT in accuracy; "
            "the calibration error of IA2→SFT is 0.031 [0.012, 0.050] higher, which is worse",
        ),
        (
            {"value": 0.03, "low": -0.01, "high": 0.07},
            {"value": -0.01, "low": -0.02, "high": 0.0},
            "Between IA2→SFT and SFT there is no difference in accuracy that this data can show "
            "(+3.0 [−1.0, +7.0] points); no difference in calibration error that this data can show "
            "(−0.010 [−0.020, +0.000])",
        ),
    ],
)
def test_the_verdict_says_what_the_intervals_allow(
    path: Path, accuracy: dict[str, float], ece: dict[str, float], expected: str
) -> None:
    metrics = metrics_of(differences={"ia2-sft - sft": difference(accuracy, ece)})
    assert f"{expected}; a query takes 1/10 of the tokens of ICL." in report(path, metrics, rows_of()).text


def test_the_verdict_of_a_run_is_about_its_method_against_both_baselines_and_its_cost(path: Path) -> None:
    pairs = {
        f"ia2-sft - {name}": difference(interval(value), interval(0.0))
        for name, value in (("zero-shot", 0.3), ("icl", 0.0))
    }
    metrics = metrics_of(("zero-shot", "icl", "ia2", "ia2-sft"), differences=pairs)
    metrics["methods"]["ia2-sft"]["training_seconds"] = 42.0
    text = report(path, metrics, rows_of()).text
    assert "IA2→SFT is 30.0 points [25.0, 35.0] above zero-shot" in text
    assert "Between IA2→SFT and ICL there is no difference in accuracy" in text
    assert (
        "takes 12 tokens of prompt and 2.0 ms, after 42 s of training; with ICL 120 tokens of prompt and 8.0 ms" in text
    )
    assert "10.0 times fewer tokens" in text


def test_the_best_value_is_bold_and_icl_is_no_rival_in_similarity_to_itself(path: Path) -> None:
    metrics = metrics_of()
    metrics["methods"]["icl"]["similarity"] = interval(1.0, 0.0)
    page = report(path, metrics, rows_of())
    assert re.findall("<strong>(.*?)</strong>", page.own) == [
        "12",
        "12",
        "12",
        "12",
        "12",
        "80.0",
        "0.120",
        "0.400",
        "0.300",
        "0.780",
        "12",
    ]
    assert "1by definition" in page.text
    assert "Training" not in page.text


def test_figures_hold_the_numbers_given(path: Path) -> None:
    metrics = metrics_of(cells=cells_of())
    page = report(path, metrics, rows_of(task="mood", seed=0))
    accuracy = {trace["name"]: trace for trace in page.figure("Accuracy with")["data"]}
    for name, values in metrics["methods"].items():
        trace, given = accuracy[display_name(name)], values["accuracy"]
        assert trace["x"] == [given["value"]]
        assert trace["error_x"]["array"] == pytest.approx([0.05])
        assert trace["error_x"]["arrayminus"] == pytest.approx([0.05])
    assert [t["x"] for t in page.figure("Accuracy of each method on food")["data"] if t["name"] == "SFT"] == [
        [0.123]
    ] * 2
    assert [t["x"] for t in page.figure("Accuracy of each method on mood")["data"] if t["name"] == "SFT"] == [[0.6]] * 2

    diagonal, dots = page.figure("Reliability diagram of SFT,")["data"]
    assert diagonal["x"] == diagonal["y"] == [0, 1]
    assert dots["x"] == pytest.approx([0.5, 0.9])
    assert dots["y"] == pytest.approx([2 / 3, 2 / 3])
    assert dots["text"] == ["30 rows", "30 rows"]

    cosine = page.figure("Cosine")
    layers = {trace["name"]: trace["z"] for trace in cosine["data"]}
    expected = {display_name(n): [m["similarity_by_layer"]] for n, m in metrics["methods"].items() if n != "icl"}
    assert layers == expected
    assert cosine["layout"]["yaxis"]["ticktext"] == list(expected)


def test_a_method_has_one_colour_everywhere(path: Path) -> None:
    page = report(path, metrics_of(cells=cells_of()), rows_of(task="mood", seed=0))
    colours: dict[str, set[str]] = {}
    for figure in page.figures.values():
        for trace in figure["data"]:
            if "marker" in trace:
                colours.setdefault(trace["name"], set()).add(trace["marker"]["color"])
    assert colours.keys() == {display_name(name) for name in NAMES}
    assert all(len(found) == 1 for found in colours.values())
    assert len({*map(tuple, colours.values())}) == len(NAMES) - 1  # with unlabelled queries: the same, but a ring


def test_disagreements_are_a_sample_of_the_rows_with_different_answers(path: Path) -> None:
    page = report(path, metrics_of(), rows_of(n=3 * N_ROWS + 300))
    assert f"{N_ROWS} of the {N_ROWS + 100} queries, of {3 * N_ROWS + 300}, that methods answer diff" in page.text
    shown = [int(i) for i in re.findall(r"<q>query (\d+)</q>", page.own)]
    assert len(shown) == N_ROWS
    assert all(i % 3 == 0 for i in shown)
    assert {b - a for a, b in pairwise(shown)} <= {3, 6}  # spread evenly, from the first to the last
    assert (shown[0], shown[-1]) == (0, 3 * N_ROWS + 297 - 3)
    alike = [row for row in rows_of() if row["correct"]]
    assert "disagree" not in report(path, metrics_of(), alike).own.split("<script>")[0]


def test_a_query_that_is_there_twice_is_two_rows(path: Path) -> None:
    names = ("icl", "sft")
    rows = [{**row, "query": "same"} for row in rows_of(names, n=6)]
    assert "2 of the 2 queries, of 6," in report(path, metrics_of(names), rows).text


def test_a_disagreement_has_the_probabilities_of_labels_and_what_icl_was_shown(path: Path) -> None:
    names = ("icl", "sft")
    p = {"a": 0.07, "b": 0.61, "c": 0.02, "d": 0.3}
    rows = [row | {"p_labels": p} for row in rows_of(names)]
    page = report(path, metrics_of(names, context=f"{HOSTILE} demo"), rows)
    assert "<small>b: 0.61</small><small>d: 0.30</small><small>a: 0.07</small></td>" in page.own
    assert "c: 0.02" not in page.own
    assert f"What ICL sees before the first query{HOSTILE} demo" in page.text
    cells = [{**cell, "context": f"demos {i}"} for i, cell in enumerate(cells_of())]
    text = report(path, metrics_of(cells=cells), rows_of(task="mood", seed=0)).text
    assert all(f"of {cell['task']}, seed {cell['seed']}demos {i}" in text for i, cell in enumerate(cells))


def test_the_verdict_is_of_the_most_accurate_method_and_says_that_it_was_chosen(path: Path) -> None:
    pairs = {"sft - icl": difference(interval(0.1), interval(0.0))}
    assert "after the fact" not in report(path, metrics_of(differences=pairs), []).text
    pairs |= {"ia2-sft - icl": difference(interval(0.2), interval(0.0))}
    text = report(path, metrics_of(differences=pairs), []).text
    assert "IA2→SFT is 20.0 points [15.0, 25.0] above ICL" in text
    assert "Of the 2 methods compared, IA2→SFT is the most accurate on these rows: chosen after the fact" in text


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.04, "SFT is 10.0 points [5.0, 15.0] above ICL in accuracy;"),
        (0.4, "no difference in accuracy that this data can show (+10.0 [+5.0, +15.0] points, p\u00a0=\u00a00.400);"),
    ],
)
def test_the_verdict_heeds_p_values_that_are_corrected(path: Path, p: float, expected: str) -> None:
    pairs = {"sft - icl": difference({**interval(0.1), "p_holm": p}, interval(0.0))}
    assert expected in report(path, metrics_of(differences=pairs), []).text


def test_the_command_writes_the_page_again_with_what_was_found_since(tmp_path: Path) -> None:
    with pytest.raises(IA2Error, match=r"no metrics.json of a run or a comparison, and no results.csv of a sweep"):
        run_report(tmp_path)
    write_results(tmp_path, metrics_of(), rows_of())
    first = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    run_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first
    write_run(tmp_path)
    run_report(tmp_path)
    assert "How it was made" in Page(tmp_path / "report.html").text


def run_report(folder: Path) -> None:
    app(["report", str(folder)], standalone_mode=False)


def test_risk_is_of_the_surest_rows_and_rows_that_are_equally_sure_go_together(path: Path) -> None:
    rng = np.random.default_rng(0)
    sure, right = rng.integers(1, 20, 50) / 20, rng.random(50) < 0.6
    rows = [
        row | {"confidence": float(c), "correct": bool(r)}
        for row, c, r in zip(rows_of(("sft",), 50), sure, right, strict=True)
    ]
    (line,) = report(path, metrics_of(("sft",)), rows).figure("Share of wrong")["data"]
    thresholds = sorted(set(sure), reverse=True)
    assert line["x"] == pytest.approx([(sure >= t).mean() for t in thresholds])
    assert line["y"] == pytest.approx([1 - right[sure >= t].mean() for t in thresholds])


def test_cost_is_training_and_queries_and_says_when_training_has_paid_for_itself(path: Path) -> None:
    metrics = metrics_of(("zero-shot", "icl", "sft", "ia2"))
    metrics["methods"]["sft"]["training_seconds"] = 6.0  # 8 ms with ICL, 2 without: 6 s are saved in 1000 queries
    metrics["methods"]["ia2"] |= {"training_seconds": 6.0, "seconds_per_query": 0.008}
    page = report(path, metrics, [])
    lines = {trace["name"]: dict(zip(trace["x"], trace["y"], strict=True)) for trace in page.figure("Seconds")["data"]}
    assert lines["SFT"][1000] == pytest.approx(lines["ICL"][1000]) == 8.0
    assert lines["SFT"][100] > lines["ICL"][100]
    cells = re.findall(r"<tr>(.*?)</tr>", page.own[page.own.index("<h2>Cost") :])
    assert ["1,000 queries" in cell for cell in cells[1:5]] == [False, False, True, False]
    assert "never" in cells[4]


def write_run(folder: Path, seed: int = 0, method: str = "ia2-sft", n_unlabelled: int = 0) -> None:
    """What a run leaves in its folder."""
    logs = {0.1: [{"step": 0, "eval_loss": 2.0}, {"step": 1, "loss": 9.0}, {"step": 2, "eval_loss": 0.5}]}
    logs[0.2] = [{"step": 1, "loss": 3.0}]
    logs[0.3] = [{"step": step, "loss": 1.0} for step in range(1000)]
    trainings = [{"learning_rate": rate, "log": log} for rate, log in logs.items()]
    write_json(folder / "adapters" / "ia2" / "training.json", {"learning_rate": 0.1, "trainings": trainings})
    write_text(folder / "config.yaml", f"model: tiny\nmethod: {method}\nseed: {seed}\ncontext: '{HOSTILE}'\n")
    environment = {"command": ["ia2", "train", "--set", "a=[1]"], "packages": {"torch": "9.8.7"}, "threads": 3}
    write_json(folder / "environment.json", environment)
    splits = ["train"] * 8 + ["dev"] * 4 + ["unlabelled"] * n_unlabelled
    write_jsonl(folder / "examples.jsonl", [{"split": split, "query": "q"} for split in splits])


def record_of(page: Page) -> dict[str, str]:
    """The last part of the page: what and value."""
    found = re.findall(
        r'<th scope="row">([^<]*)</th><td>([^<]*)</td>', page.own[page.own.index("<h2>How it was made") :]
    )
    return dict(found)


def test_the_report_of_a_run_says_how_it_was_made_and_shows_its_training(path: Path) -> None:
    write_run(path.parent)
    page = report(path, metrics_of(), [])
    assert "The command that repeats it:ia2 train --set 'a=[1]'" in page.text
    rows = {"Training rows": "8", "Development rows": "4", "Unlabelled rows": "0", "Test rows": "60", "Seeds": "0"}
    expected = {**rows, "torch": "9.8.7", "threads": "3", "method": "ia2-sft", "context": escape(HOSTILE)}
    assert expected.items() <= record_of(page).items()
    assert "<script>alert" not in page.own
    chosen, other, long = page.figure("Loss of IA2 over steps")["data"]
    assert (len(long["x"]), long["x"][0], long["x"][-1]) == (200, 0, 999)
    assert ((chosen["x"], chosen["y"]), chosen["line"]["dash"]) == (([0, 2], [2.0, 0.5]), "solid")
    assert ((other["x"], other["y"]), other["line"]["dash"]) == (([1], [3.0]), "dot")


def test_the_report_of_a_comparison_has_what_differs_between_its_runs(path: Path) -> None:
    for seed in (0, 1):
        for method in ("ia2", "ia2-sft", "ia2-sft+unlabelled"):
            more = 5 if method.endswith("+unlabelled") else 0
            write_run(path.parent / "cells" / f"cell{seed}" / method, seed, method, more)
    page = report(path, metrics_of(), [])
    expected = {
        "Seeds": "0, 1",
        "Unlabelled rows": "0, 5",
        "method": "ia2, ia2-sft, ia2-sft+unlabelled",
        "model": "tiny",
    }
    assert expected.items() <= record_of(page).items()
    for label in ("IA2", "IA2 + unlabelled"):
        assert len(page.figure(f"Loss of {label} over steps")["data"]) == 2 * 3  # cells, learning rates


@pytest.mark.parametrize(("place", "heading"), [(".", "Why"), ("cells/a", "Why (the first cell analysed)")])
def test_an_analysis_is_shown_where_there_is_one(
    place: str, heading: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ia2.report.page.analysis_sections", lambda found: {"Why": found["text"]})
    more = {"cells": cells_of()} if place != "." else {}
    assert "<h2>Why" not in report(path, metrics_of(**more), []).own
    write_json(path.parent / place / "analysis.json", {"text": "because"})
    assert f"<h2>{heading}</h2>\nbecause" in report(path, metrics_of(**more), []).own


def test_one_method_without_predictions(path: Path) -> None:
    page = report(path, metrics_of(("ia2",)), [])
    assert "no pair of methods to compare" in page.text
    assert [label.split(" ")[0] for label in page.figures] == ["Accuracy", "Cosine"]
    assert "How it was made" not in page.text
    assert "<strong>" not in page.own
    assert "Calibration" not in page.own


def test_no_value_of_a_table_is_cut_off_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    names = ("icl", "a method of a very long name, which is one of a user's own stages, and then some")
    print_table(metrics_of(names))
    row = next(line for line in capsys.readouterr().out.splitlines() if names[1] in line)
    assert "…" not in row
    assert "0.55 [0.50, 0.60]" in row


def test_the_terminal_rounds_as_the_page_does(capsys: pytest.CaptureFixture[str]) -> None:
    gap = {"value": -0.001, "low": -0.02, "high": 0.004}
    metrics = metrics_of(differences={"ia2 - sft": difference({**gap, "p_holm": 0.0002}, interval(0.0))})
    metrics["methods"]["ia2"]["nll"]["value"] = -0.0
    print_table(metrics)
    print_verdict(metrics)
    shown = capsys.readouterr().out
    assert "+0.00 [−0.02, +0.00] in accuracy, p < 0.001: a difference" in shown
    assert "-0.00" not in shown
