"""`ia2 explore`: one query, every method side by side, with demos that can be changed.

One model is in memory, and its adapters are switched; `Explorer` is what the page shows, without the page.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

import torch.nn.functional as F

from ia2.adapters import loaded_adapters
from ia2.analysis import Subject
from ia2.data import Example, parse_examples
from ia2.errors import IA2Error
from ia2.evaluation import Answer, answer, gold
from ia2.files import read_jsonl
from ia2.models import LanguageModel
from ia2.report.figures import OTHER, heat_map
from ia2.report.frame import dotted, table
from ia2.report.numbers import MILLISECONDS, SCORE

N_QUERIES = 100  # to pick from
CSS = """input[role=combobox] { color: var(--body-text-color) !important; }
.dot { display: inline-block; width: .7em; height: .7em; margin-right: .5em; border: .16em solid; border-radius: 50%;
background: currentColor; } .dot.ring { background: none; }
.scroll { overflow-x: auto; } .scroll table { width: 100%; font-variant-numeric: tabular-nums; }
.scroll :is(table, thead, tbody, tr, th, td) { text-align: left; border: none; padding: .35rem .6rem .35rem 0; }
.scroll tr { border-bottom: 1px solid var(--border-color-primary); } .scroll th { white-space: nowrap; }
.scroll caption { text-align: left; padding-bottom: .5rem; } meter { width: 4rem; }
.scroll caption span { display: block; max-width: calc(100vw - 5.5rem); position: sticky; left: 0; }
meter::-webkit-meter-bar { background: var(--border-color-primary); }
meter::-webkit-meter-optimum-value { background: currentColor; } meter::-moz-meter-bar { background: currentColor; }"""


@dataclass(frozen=True)
class Shown:
    """What a method says to a query.

    Attributes:
        method: by name.
        answer: with its probabilities and the tokens of the prompt.
        seconds: wall time of the answer alone.
        similarity: per layer, cosine similarity of the attention outputs to ICL's, where ICL's own answer is read.
    """

    method: str
    answer: Answer
    seconds: float
    similarity: list[float]


@dataclass(frozen=True)
class Explorer:
    """The methods of a run, or of a cell of `ia2 compare`, on a model that has their adapters loaded."""

    subject: Subject
    lm: LanguageModel

    def look(self, query: str, demos: Sequence[Example]) -> list[Shown]:
        """Zero-shot, ICL with these demos, and each adapter; a demo that is the query itself is not shown.

        Raises:
            IA2Error: no query, or one that does not fit the model's window.
        """
        if not query.strip():
            raise IA2Error("found no query; type one, or pick one")
        task = self.subject.run.task()
        zero, icl, *adapters = self.subject.variants(self.lm)
        if icl.contexts:
            others = tuple(demo for demo in demos if demo.query != query)
            icl = replace(icl, contexts=replace(icl.contexts, demos=others))
        answers: dict[str, tuple[Answer, float]] = {}
        for variant in (zero, icl, *adapters):
            start = time.perf_counter()
            (given,) = answer(self.lm, task, [Example(query)], variant)
            answers[variant.name] = given, time.perf_counter() - start
        read = Example(query, answers[icl.name][0].text or next(iter(task.labels or ()), ""))
        (teacher_RLD,) = gold(self.lm, task, [read], icl).acts
        found = []
        for variant in (zero, icl, *adapters):
            (acts_RLD,) = gold(self.lm, task, [read], variant).acts
            similarity_L = F.cosine_similarity(acts_RLD.float(), teacher_RLD.float(), dim=-1).mean(0)
            found.append(Shown(variant.name, *answers[variant.name], similarity_L.tolist()))
        return found

    def queries(self, folder: Path) -> list[str]:
        """Those to pick from: the test rows that were evaluated, or else the development rows."""
        path = folder / "predictions.jsonl"
        rows = [row["query"] for row in read_jsonl(path)] if path.is_file() else []
        return list(dict.fromkeys(rows or [e.query for e in self.subject.run.data.dev]))[:N_QUERIES]

    @property
    def demos(self) -> str:
        """The training rows, as JSON lines to be changed."""
        rows = [{"query": e.query, "response": e.label} for e in self.subject.run.data.train]
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def read_demos(text: str) -> list[Example]:
    """Demos of JSON lines; none of an empty text."""
    return parse_examples(text, "demos") if text.strip() else []


def answers_table(found: Sequence[Shown]) -> str:
    """A row a method, as HTML: its answer, probabilities of labels or the confidence of a generated one, its cost."""
    labels = list(found[0].answer.p_labels or {})
    rows = []
    for of in found:
        shares = list((of.answer.p_labels or {"": of.answer.confidence}).values())
        cost = [str(of.answer.n_tokens), MILLISECONDS.number(of.seconds), SCORE.number(fmean(of.similarity))]
        answered = f"<b>{escape(of.answer.text) or '(none)'}</b>"
        rows.append([dotted(of.method), answered, *map(_meter, shares), *cost])
    titles = ["Method", "Answer", *(map(escape, labels) if labels else ["Confidence"]), "Tokens", "ms", "Similarity"]
    caption = (
        "Each method's answer, the probability of each label, tokens of its prompt, time, and similarity to ICL, mean "
        "over layers."
    )
    return table(caption, titles, rows)


def _meter(share: float) -> str:
    return f'{share:.3f} <meter value="{share:.3f}" aria-label="probability"></meter>'


@contextmanager
def serving(folder: Path, host: str = "127.0.0.1", port: int = 7860, trust_remote_code: bool = False) -> Iterator[str]:
    """Within the block, the page of a run or of a cell is at the address that it yields.

    Raises:
        IA2Error: there is no Gradio, no such run, or the port is taken.
    """
    gradio = _gradio()
    subject = Subject.open(folder, trust_remote_code)
    lm = subject.run.load_model()
    with loaded_adapters(lm, subject.adapters):
        explorer = Explorer(subject, lm)
        blocks = _page(gradio, explorer, explorer.queries(folder))
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # none to be fetched
        button = {
            "button_primary_background_fill": "*primary_600",
            "button_primary_background_fill_hover": "*primary_700",
        }
        theme = gradio.themes.Default(primary_hue="blue", **fonts).set(**button)
        local = {"share": False, "ssr_mode": False, "mcp_server": False, "footer_links": []}
        look = {"theme": theme, "css": CSS, "quiet": True, "prevent_thread_lock": True}
        try:
            blocks.launch(server_name=host, server_port=port, **look, **local)
        except OSError:
            raise IA2Error(f"{host}:{port} cannot be listened on; choose another with --port") from None
        try:
            yield f"http://{host}:{port}"
        finally:
            blocks.close(verbose=False)


def _gradio() -> Any:
    """Gradio, which tells nobody that it runs."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio
    except ImportError:
        raise IA2Error("'ia2 explore' needs Gradio: pip install 'ia2[explore]'") from None
    return gradio


def _page(gradio: Any, explorer: Explorer, queries: Sequence[str]) -> Any:
    def show(query: str, demos: str) -> tuple[str, Any]:
        try:
            found = explorer.look(query, read_demos(demos))
        except IA2Error as error:
            raise gradio.Error(str(error)) from None
        figure = heat_map({of.method: of.similarity for of in found if of.method != "icl"})
        return answers_table(found), gradio.update(value=figure.update_layout(font={"color": OTHER}), visible=True)

    run = explorer.subject.run
    setting = f"Model {run.config.model} · {len(run.data.train)} training examples"
    with gradio.Blocks(title="ia2 explore", analytics_enabled=False) as blocks:
        gradio.HTML(f"<h1>One query, every method</h1><p>{escape(setting)}</p>")
        with gradio.Row():
            with gradio.Column():
                choices = [(" ".join(query.split())[:120], query) for query in queries]
                picked = gradio.Dropdown(choices, value=None, label="Pick a query")
                query = gradio.Textbox(queries[0] if queries else "", lines=3, label="Query")
            demos = gradio.Textbox(explorer.demos, lines=6, max_lines=12, label="Demos that ICL sees, as JSON lines")
        button = gradio.Button("Answer", variant="primary")
        answers = gradio.HTML(label="Answers")
        gradio.HTML("<p>Cosine similarity of the attention outputs to ICL's by layer, where ICL's answer is read:</p>")
        similarity = gradio.Plot(label="Similarity to ICL", show_label=False, visible=False)
        picked.input(lambda text: text, picked, query)
        button.click(show, [query, demos], [answers, similarity])
    return blocks
