"""One query, every method: what is said, and the page that shows it."""

import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_browser import Reader, chromium, needs_chromium

from ia2.adapters import loaded_adapters
from ia2.analysis import Subject
from ia2.config import make_config
from ia2.data import Example, read_examples
from ia2.errors import IA2Error
from ia2.evaluation import Answer, evaluate
from ia2.explore import Explorer, Shown, answers_table, read_demos, serving
from ia2.files import write_jsonl
from ia2.run import Data, Run, train_runs

ROWS = read_examples(Path(__file__).parents[1] / "examples" / "mood" / "train.jsonl")
DEMOS, QUERY = ROWS[:6], ROWS[10].query
OPTIONS = {"model": "tiny", "demos": "fixed", "num_train_epochs": 2, "learning_rate": [1e-2]}


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two methods, with a test row that was evaluated."""
    folder = tmp_path_factory.mktemp("cell")
    data = Data(DEMOS, ROWS[6:8])
    runs = [Run.create(folder / m, make_config({**OPTIONS, "method": m}), data) for m in ("sft", "ia2-sft")]
    train_runs(runs, runs[0].load_model())
    write_jsonl(folder / "predictions.jsonl", [{"query": "Text:glad cow\nLabel:"}, {"query": QUERY}, {"query": QUERY}])
    return folder


@pytest.fixture(scope="module")
def explorer(cell: Path) -> Iterator[Explorer]:
    subject = Subject.open(cell)
    lm = subject.load_model()
    with loaded_adapters(lm, subject.adapters):
        yield Explorer(subject, lm)


def by_name(found: list[Shown]) -> dict[str, Shown]:
    return {of.method: of for of in found}


def test_every_method_says_what_it_says_when_it_is_evaluated(explorer: Explorer) -> None:
    found = by_name(explorer.look(QUERY, DEMOS))
    assert sorted(found) == ["ia2", "ia2-sft", "icl", "sft", "zero-shot"]
    variants, task = explorer.subject.variants(explorer.lm), explorer.subject.run.task()
    example = Example(QUERY, found["icl"].answer.text)
    for p in evaluate(explorer.lm, task, [example], variants, variants[1]):
        own = found[p.variant]
        assert (own.answer.text, own.answer.n_tokens) == (p.answer, p.n_tokens)
        assert own.answer.p_labels == pytest.approx(p.p_labels)
        assert own.similarity == pytest.approx(p.similarity, abs=1e-6)
        assert own.seconds > 0
    assert found["icl"].similarity == pytest.approx([1.0] * 4)
    assert max(found["zero-shot"].similarity) < 0.999


def test_icl_sees_the_demos_that_are_given(explorer: Explorer) -> None:
    first = by_name(explorer.look(QUERY, DEMOS))
    changed = [replace(DEMOS[0], response="1" if DEMOS[0].response == "0" else "0"), *DEMOS[2:]]
    second = by_name(explorer.look(QUERY, changed))
    text = "".join(f"{demo.query}{demo.response}\n\n" for demo in changed) + QUERY
    tokenizer = explorer.lm.encoder.tokenizer
    with torch.no_grad(), explorer.lm.model.disable_adapter():
        logits = explorer.lm.base(**tokenizer(text, return_tensors="pt")).logits[0, -1]
    ids = [tokenizer(label, add_special_tokens=False).input_ids[-1] for label in ("0", "1")]
    expected = dict(zip(("0", "1"), logits[ids].softmax(0).tolist(), strict=True))
    assert second["icl"].answer.p_labels == pytest.approx(expected, abs=1e-5)
    assert second["icl"].answer.p_labels != pytest.approx(first["icl"].answer.p_labels, abs=1e-5)
    for name in ("zero-shot", "sft", "ia2-sft"):
        assert second[name].answer.p_labels == pytest.approx(first[name].answer.p_labels)


def test_without_demos_or_with_the_query_itself_alone_icl_is_zero_shot(explorer: Explorer) -> None:
    for demos in ([], [Example(QUERY, "1")]):
        found = by_name(explorer.look(QUERY, demos))
        assert found["icl"].answer == found["zero-shot"].answer
        assert found["zero-shot"].similarity == pytest.approx([1.0] * 4)


def test_a_generated_answer_has_its_confidence(explorer: Explorer) -> None:
    run = explorer.subject.run
    config = run.config.model_copy(update={"labels": "none", "max_new_tokens": 3})
    other = replace(explorer, subject=replace(explorer.subject, run=replace(run, config=config)))
    found = other.look(QUERY, DEMOS)
    assert all(0 < of.answer.confidence <= 1 and of.answer.p_labels is None for of in found)
    assert '<th scope="col">Confidence</th>' in answers_table(found)


def test_the_table_has_probabilities_and_cost_and_its_text_stays_text() -> None:
    hostile = "<script>alert(1)</script>"
    given = Answer(hostile, 0.75, 0.75, 12, {hostile: -0.2876820724, "b": -1.3862943611})
    html = answers_table([Shown("sft", given, 0.0042, [1.0, 0.5])])
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 2
    assert all(
        text in html for text in ('0.750 <meter value="0.750"', "0.250", "<td>12</td><td>4.2</td><td>0.750</td>", "SFT")
    )


def test_demos_are_json_lines_and_queries_are_those_evaluated(explorer: Explorer, cell: Path) -> None:
    assert read_demos(explorer.demos) == [Example(e.query, e.response) for e in DEMOS]
    assert read_demos(" \n") == []
    with pytest.raises(IA2Error, match="demos:2: not JSON"):
        read_demos(explorer.demos.splitlines()[0] + "\n{oops")
    assert explorer.queries(cell) == ["Text:glad cow\nLabel:", QUERY]
    assert explorer.queries(cell / "sft") == [e.query for e in ROWS[6:8]]
    with pytest.raises(IA2Error, match="found no query"):
        explorer.look(" ", DEMOS)


def test_without_gradio_it_says_what_to_install(cell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(IA2Error, match=r"pip install 'ia2\[explore\]'"), serving(cell):
        pass


@needs_chromium
@pytest.mark.filterwarnings("ignore")  # of Gradio's own
def test_the_page_answers_in_a_browser_and_asks_nobody_else(cell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[Any] = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda own, to: reached.append(to) or connect(own, to))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(cell, port=port) as address, chromium() as browser:
        reader = Reader(browser, address, viewport={"width": 380, "height": 800})
        page = reader.page
        page.get_by_role("button", name="Answer").wait_for()
        assert reader.violations() == []
        button, query = page.get_by_role("button", name="Answer"), page.get_by_label("Query", exact=True)
        row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="ICL", exact=True))
        assert query.input_value() == "Text:glad cow\nLabel:"
        page.get_by_label("Pick a query").click()
        page.get_by_role("option").nth(1).click()
        page.wait_for_function(
            f"[...document.querySelectorAll('textarea')].some(of => of.value == {json.dumps(QUERY)})"
        )
        button.click()
        row.wait_for()
        names = page.get_by_role("rowheader").all_inner_texts()
        assert sorted(names) == sorted(["zero-shot", "ICL", "SFT", "IA2", "IA2→SFT"])
        before = row.inner_text()
        page.get_by_label("Demos").fill('{"query": "Text:sad cow\\nLabel:", "response": "1"}')
        button.click()
        page.wait_for_function(
            "text => ![...document.querySelectorAll('tr')].some(of => of.innerText == text)", arg=before
        )
        page.locator(".js-plotly-plot").wait_for()
        page.wait_for_function("!document.querySelector('.pending') && !document.getAnimations().length")  # faded in
        assert reader.violations() == []
        page.get_by_label("Demos").fill("{oops")
        button.click()
        page.get_by_text("demos:1: not JSON").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 380
        assert (reader.asked, reader.said) == ([], [])
        with pytest.raises(IA2Error, match="cannot be listened on"), serving(cell, port=port):
            pass
    assert reached
    assert {to[0] for to in reached if isinstance(to, tuple)} <= {"127.0.0.1", "::1"}
