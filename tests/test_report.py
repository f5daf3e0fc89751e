"""The report page, read back: its text, its tables, and the data of its figures."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from ia2.report import display_name, write_report
from ia2.report.page import N_DISAGREEMENTS

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
        self.own = self.html.replace(get_plotlyjs(), "")
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


def cells() -> list[dict[str, Any]]:
    methods = {name: method(k) for k, name in enumerate(NAMES)}
    shifted = {**methods, "sft": {**methods["sft"], "accuracy": interval(0.123)}}
    return [
        {"task": task, "description": f"about {task}", "seed": seed, "methods": shifted if task == "food" else methods}
        for task in ("mood", "food")
        for seed in (0, 1)
    ]


def test_it_asks_the_network_for_nothing_and_stays_below_5_mb(path: Path) -> None:
    page = report(path, metrics_of(cells=cells()), rows_of(task="mood", seed=0))
    assert path.stat().st_size < 5_000_000
    assert page.html.count(get_plotlyjs()) == 1
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
    page = report(path, metrics_of(cells=cells(), differences=pairs), rows_of(task="mood", seed=0))
    labels = list(page.figures)
    assert [label.split(" ")[0] for label in labels] == ["Accuracy"] * 3 + ["Reliability"] * len(NAMES) + ["Cosine"]
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
            "the calibration error of IA2→SFT is 0.031 [0.012, 0.050] lower, which is better.",
        ),
        (
            {"value": -0.052, "low": -0.09, "high": -0.011},
            {"value": 0.031, "low": 0.012, "high": 0.05},
            "IA2→SFT is 5.2 points [1.1, 9.0] below SFT in accuracy; "
            "the calibration error of IA2→SFT is 0.031 [0.012, 0.050] higher, which is worse.",
        ),
        (
            {"value": 0.03, "low": -0.01, "high": 0.07},
            {"value": -0.01, "low": -0.02, "high": 0.0},
            "Between IA2→SFT and SFT there is no difference in accuracy that this data can show "
            "(+3.0 [−1.0, +7.0] points); no difference in calibration error that this data can show "
            "(−0.010 [−0.020, +0.000]).",
        ),
    ],
)
def test_the_verdict_says_what_the_intervals_allow(
    path: Path, accuracy: dict[str, float], ece: dict[str, float], expected: str
) -> None:
    metrics = metrics_of(differences={"ia2-sft - sft": difference(accuracy, ece)})
    assert expected in report(path, metrics, rows_of()).text


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
    metrics = metrics_of(cells=cells())
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

    layers = {trace["name"]: trace["y"] for trace in page.figure("Cosine")["data"]}
    expected = {display_name(n): m["similarity_by_layer"] for n, m in metrics["methods"].items() if n != "icl"}
    assert layers == expected


def test_a_method_has_one_colour_everywhere(path: Path) -> None:
    page = report(path, metrics_of(cells=cells()), rows_of(task="mood", seed=0))
    colours: dict[str, set[str]] = {}
    for figure in page.figures.values():
        for trace in figure["data"]:
            if "marker" in trace:
                colours.setdefault(trace["name"], set()).add(trace["marker"]["color"])
    assert colours.keys() == {display_name(name) for name in NAMES}
    assert all(len(found) == 1 for found in colours.values())
    assert len({*map(tuple, colours.values())}) == len(NAMES) - 1  # with unlabelled queries: the same, but a ring


def test_disagreements_are_a_sample_of_the_rows_with_different_answers(path: Path) -> None:
    page = report(path, metrics_of(), rows_of(n=300))
    assert f"{N_DISAGREEMENTS} of the 100 queries, of 300, that methods answer differently" in page.text
    shown = [int(i) for i in re.findall(r"<q>query (\d+)</q>", page.own)]
    assert len(shown) == N_DISAGREEMENTS
    assert all(i % 3 == 0 for i in shown)
    assert {b - a for a, b in pairwise([-3, *shown, 300])} <= {3, 6, 9}  # spread evenly, from the first to the last
    alike = [row for row in rows_of() if row["correct"]]
    assert "disagree" not in report(path, metrics_of(), alike).text


def test_a_query_that_is_there_twice_is_two_rows(path: Path) -> None:
    names = ("icl", "sft")
    rows = [{**row, "query": "same"} for row in rows_of(names, n=6)]
    assert "2 of the 2 queries, of 6," in report(path, metrics_of(names), rows).text


def test_one_method_without_predictions(path: Path) -> None:
    page = report(path, metrics_of(("ia2",)), [])
    assert "no pair of methods to compare" in page.text
    assert [label.split(" ")[0] for label in page.figures] == ["Accuracy", "Cosine"]
    assert "<strong>" not in page.own
    assert "Calibration" not in page.own
