"""One self-contained HTML page: which method is best, by how much, at what cost. No network requests."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ia2.files import write_text
from ia2.metrics import N_BINS, bins

UNLABELLED = "+unlabelled"
N_DISAGREEMENTS = 40


@dataclass(frozen=True)
class Look:
    """How a method appears everywhere: a name for people, what it is, a colour, and a ring or a full dot in it."""

    name: str
    what: str
    colour: str
    ring: bool = False

    @property
    def dot(self) -> str:
        """HTML that says which colour the method has."""
        return f'<i class="{"dot ring" if self.ring else "dot"}" style="color:{self.colour}"></i>'

    def marker(self, size: float = 8) -> dict[str, Any]:
        """The dot in a plot."""
        line = {"width": 2 if self.ring else 0, "color": self.colour}
        return {"color": self.colour, "size": size, "symbol": "circle-open" if self.ring else "circle", "line": line}


# The colours are Okabe and Ito's (2008), told apart by colour-blind readers too; their black is grey, for dark pages.
LOOKS = {
    "zero-shot": Look("zero-shot", "the model as it is, no examples", "#8A8A8A"),
    "icl": Look("ICL", "the examples in every prompt", "#E69F00"),
    "sft": Look("SFT", "an adapter trained on the labels", "#56B4E9"),
    "soft": Look("soft labels", "an adapter trained on ICL's output probabilities", "#CC79A7"),
    "ia2": Look("IA2", "an adapter trained on ICL's activations", "#009E73"),
    "ia2-sft": Look("IA2→SFT", "IA2 first, then SFT on the labels", "#D55E00"),
}
OTHER = Look("", "", "#0072B2")


@dataclass(frozen=True)
class Column:
    """A column of the methods table: where its value is, how it is shown, and what a reader should make of it."""

    key: str
    title: str
    better: str  # higher, lower, or nothing where no best one is marked
    digits: int
    what: str
    scale: float = 1.0


COLUMNS = (
    Column("accuracy", "Accuracy, %", "higher", 1, "answers that are the gold response", 100.0),
    Column("ece", "ECE", "lower", 3, "expected calibration error: how far confidence is from accuracy, 0 to 1"),
    Column("nll", "NLL", "lower", 3, "negative log-likelihood of the gold response, in nats"),
    Column("brier", "Brier", "lower", 3, "squared error of the probabilities"),
    Column(
        "similarity", "Similarity", "higher", 3, "cosine similarity of the attention outputs to ICL's; ICL's own is 1"
    ),
    Column("tokens_per_query", "Tokens", "lower", 0, "length of the prompt of one query"),
    Column(
        "seconds_per_query", "ms", "", 1, "time for one query on this machine, in milliseconds; lower is better", 1e3
    ),
    Column("training_seconds", "Training, s", "", 0, "time to train once, in seconds; lower is better"),
)


def write_report(path: Path, metrics: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        metrics: what `metrics.json` holds: of one run, or of the demo with its `cells` (task and seed).
        predictions: rows of `ia2.evaluation.Prediction`; those of the demo with `task` and `seed`.
    """
    methods, cells = metrics["methods"], metrics.get("cells", [])
    title = escape(metrics.get("title") or f"IA2 run on {metrics['model']}")
    tasks = _grouped(cells, lambda cell: cell["task"])
    setting = f"Model {metrics['model']} · {metrics['n_train']} training examples · {metrics['n_test']} test rows"
    if cells:
        setting += f" in each cell (cells: {len(cells)}, tasks: {len(tasks)}, seeds: {len({c['seed'] for c in cells})})"
    sections = [
        ("Verdict", _verdict(metrics)),
        ("Methods", _methods_table(methods)),
        ("Accuracy", _accuracy(methods, tasks)),
        ("Calibration", _calibration(methods, predictions, bool(cells))),
        ("Similarity to ICL by layer", _similarity(methods)),
        ("Differences", _differences_table(metrics.get("differences", {}))),
        ("Where methods disagree", _disagreements(methods, predictions)),
        ("How to read this page", _notes(bool(cells))),
    ]
    body = "\n".join(f"<section>\n<h2>{name}</h2>\n{html}\n</section>" for name, html in sections if html)
    header = f"<header>\n<h1>{title}</h1>\n<p>{escape(setting)}</p>\n</header>"
    head = f"{HEAD}<title>{title}</title>\n<style>{STYLE}</style>\n<script>{get_plotlyjs()}</script>\n"
    page = f"<body>\n<main>\n{header}\n{body}\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    write_text(path, f"{head}</head>\n{page}")


def display_name(method: str) -> str:
    """The name of a method for people; an unknown one as it is."""
    return _look(method).name


def _look(method: str) -> Look:
    base = method.removesuffix(UNLABELLED)
    look = LOOKS.get(base, replace(OTHER, name=base))
    if base == method:
        return look
    return replace(
        look, name=f"{look.name} + unlabelled", what="the same, with more queries, which ICL answered", ring=True
    )


# --- In words and numbers


def _verdict(metrics: dict[str, Any]) -> str:
    methods, differences = metrics["methods"], metrics.get("differences", {})
    subject = next(iter(differences), "").split(" - ")[0]
    claims = [_claim(pair, values) for pair, values in differences.items() if pair.split(" - ")[0] == subject]
    if not claims:
        claims = ["There is no pair of methods to compare here."]
    if subject in methods and "icl" in methods and subject != "icl":
        claims.append(_cost(subject, methods[subject], methods["icl"]))
    first, *others = claims
    items = "".join(f"<li>{claim}</li>" for claim in others)
    return f'<p class="lead">{first}</p>\n<ul>{items}</ul>\n{_tiles(methods, subject)}'


def _tiles(methods: dict[str, Any], subject: str) -> str:
    if len(methods) == 1:
        return ""
    tiles = []
    for label, column in (("Highest accuracy", COLUMNS[0]), ("Lowest calibration error", COLUMNS[1])):
        names, value = _best(methods, column)
        shown = ", ".join(display_name(name) for name in names)
        tiles.append((label, shown, f"{column.title.replace(', %', '')} {value}{'%' if column.scale == 100 else ''}"))
    if subject in methods and "icl" in methods:
        own, icl = (_number(methods[name]["tokens_per_query"], 0) for name in (subject, "icl"))
        tiles.append(("Prompt of one query", f"{own} tokens", f"{display_name(subject)}; with ICL {icl}"))
    cards = [f"<div><dt>{a}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in tiles]
    return f'<dl class="tiles">{"".join(cards)}</dl>'


def _claim(pair: str, difference: dict[str, Any]) -> str:
    """What the intervals of a minus b allow to say about accuracy and calibration error; nothing if they hold 0."""
    a, b = (f"<b>{escape(display_name(name))}</b>" for name in pair.split(" - ", 1))
    accuracy, ece = difference["accuracy"], difference["ece"]
    none = "no difference in {} that this data can show"
    if sign := _sign(accuracy):
        text = f"{a} is {_size(accuracy, 1, 100, ' points')} {'above' if sign > 0 else 'below'} {b} in accuracy"
    else:
        text = f"Between {a} and {b} there is {none.format('accuracy')} ({_interval(accuracy, 1, 100, '+')} points)"
    if sign := _sign(ece):
        side = "higher, which is worse" if sign > 0 else "lower, which is better"
        return f"{text}; the calibration error of {a} is {_size(ece, 3)} {side}."
    return f"{text}; {none.format('calibration error')} ({_interval(ece, 3, 1, '+')})."


def _cost(name: str, method: dict[str, Any], icl: dict[str, Any]) -> str:
    own, other = (
        f"{_number(m['tokens_per_query'], 0)} tokens of prompt and {_number(m['seconds_per_query'], 1, 1e3)} ms"
        for m in (method, icl)
    )
    ratio = icl["tokens_per_query"] / method["tokens_per_query"]
    fewer = f": {_number(ratio, 1)} times fewer tokens" if ratio >= 1.05 else ""
    once = f", after {_number(method['training_seconds'], 0)} s of training" if "training_seconds" in method else ""
    return f"A query to <b>{escape(display_name(name))}</b> takes {own}{once}; with <b>ICL</b> {other}{fewer}."


def _methods_table(methods: dict[str, Any]) -> str:
    columns = [c for c in COLUMNS if any(c.key in m for m in methods.values())]
    best = {c.key: _best(methods, c)[1] if c.better and len(methods) > 1 else None for c in columns}
    rows = []
    for name, method in methods.items():
        cells = [_value_cell(name, method, column, best[column.key]) for column in columns]
        rows.append([f"{_look(name).dot}{escape(display_name(name))}<small>{_look(name).what}</small>", *cells])
    legend = "".join(
        f"<li><b>{c.title}</b>: {c.what}{f'; {c.better} is better' if c.better else ''}.</li>" for c in columns
    )
    caption = "Every method on the same test rows: value, and its 95% bootstrap interval below; the best value is bold."
    return f'{_table(caption, ["Method", *(c.title for c in columns)], rows)}\n<ul class="legend">{legend}</ul>'


def _value_cell(name: str, method: dict[str, Any], column: Column, best: str | None) -> str:
    if column.key not in method:
        return ""
    if name == "icl" and column.key == "similarity":
        return "1<small>by definition</small>"
    value, interval = method[column.key], ""
    if isinstance(value, dict):
        interval = f"<small>{_range(value, column.digits, column.scale)}</small>"
        value = value["value"]
    text = _number(value, column.digits, column.scale)
    return f"{f'<strong>{text}</strong>' if text == best else text}{interval}"


def _best(methods: dict[str, Any], column: Column) -> tuple[list[str], str]:
    """The methods that share the best value as it is shown, and that value. ICL is no rival in similarity to itself."""
    rivals = {name: m[column.key] for name, m in methods.items() if column.key in m}
    if column.key == "similarity":
        rivals.pop("icl", None)
    values = {name: v["value"] if isinstance(v, dict) else v for name, v in rivals.items()}
    if not values:
        return [], ""
    texts = {name: _number(value, column.digits, column.scale) for name, value in values.items()}
    best = texts[(max if column.better == "higher" else min)(values, key=lambda name: values[name])]
    return [name for name, text in texts.items() if text == best], best


def _differences_table(differences: dict[str, Any]) -> str:
    rows = []
    for pair, values in differences.items():
        cells = [_difference_cell(values[c.key], c) if c.key in values else "" for c in COLUMNS[:4]]
        rows.append([" minus ".join(escape(display_name(name)) for name in pair.split(" - ", 1)), *cells])
    caption = "Paired differences on the same rows, with 95% bootstrap intervals; bold where the interval leaves out 0."
    titles = [c.title.replace("%", "points") for c in COLUMNS[:4]]
    return _table(caption, ["Methods", *titles], rows) if rows else ""


def _difference_cell(difference: dict[str, float], column: Column) -> str:
    sign = _sign(difference)
    text = _number(difference["value"], column.digits, column.scale, "+")
    word = "better" if sign == (1 if column.better == "higher" else -1) else "worse"
    shown = f"<strong>{text}</strong> {word}" if sign else text
    return f"{shown}<small>{_range(difference, column.digits, column.scale, '+')}</small>"


def _disagreements(methods: dict[str, Any], predictions: list[dict[str, Any]]) -> str:
    """A sample of the queries that methods answer differently, spread evenly over all of them."""
    seen: dict[tuple[Any, ...], int] = {}
    by_query: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for p in predictions:
        key = (p.get("task"), p.get("seed"), p["query"], p["response"])
        own = (p["variant"], *key)
        seen[own] = seen.get(own, 0) + 1  # a query may be there more than once
        by_query.setdefault((*key, seen[own]), {})[p["variant"]] = p
    differing = [rows for rows in by_query.values() if len({p["answer"] for p in rows.values()}) > 1]
    if not differing:
        return ""
    n = min(N_DISAGREEMENTS, len(differing))
    sample = [differing[i * len(differing) // n] for i in range(n)]
    rows = []
    for answers in sample:
        p = next(iter(answers.values()))
        where = f"<small>{escape(str(p['task']))}, seed {escape(str(p['seed']))}</small>" if "task" in p else ""
        cells = [_answer_cell(answers[name]) if name in answers else "" for name in methods]
        rows.append([f"<q>{_clipped(p['query'], 240)}</q>{where}", _clipped(p["response"], 80), *cells])
    names = [escape(display_name(name)) for name in methods]
    caption = "The query, its gold response, and each method's answer (✓ right, ✗ wrong) with its confidence below."
    summary = f"{n} of the {len(differing)} queries, of {len(by_query)}, that methods answer differently"
    return f"<details><summary>{summary}</summary>\n{_table(caption, ['Query', 'Gold', *names], rows)}</details>"


def _answer_cell(p: dict[str, Any]) -> str:
    mark, kind = ("✓", "right") if p["correct"] else ("✗", "wrong")
    text = _clipped(p["answer"], 80) or "(none)"
    return f'<span class="{kind}">{mark}</span> {text}<small>{_number(p["confidence"], 2)}</small>'


def _notes(has_cells: bool) -> str:
    lines = [
        "An interval holds 95% of resamplings of the test rows; two that overlap can still differ: see Differences.",
        "Each interval stands alone: among many comparisons, one in twenty leaves out 0 by chance.",
        "This is one model and one small set of examples: it does not show what another model, task or size would do.",
        "Times are of this machine and these batches; counts of tokens carry over, milliseconds do not.",
    ]
    if has_cells:
        lines[0] = lines[0].replace("the test rows", "the cells and of the rows in them")
        lines[2] = lines[2].replace("one small set of examples", "a few tasks and seeds")
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


# --- In pictures


def _accuracy(methods: dict[str, Any], tasks: dict[str, list[Any]]) -> str:
    caption = "Accuracy with its 95% interval" + (", mean over all cells." if tasks else ".")
    main = _figure(_dots([("", methods)]), caption)
    panels = []
    low = min((m["accuracy"]["low"] for cs in tasks.values() for c in cs for m in c["methods"].values()), default=0)
    for task, cells in tasks.items():
        figure = _dots([(f"seed {cell['seed']}", cell["methods"]) for cell in cells])
        figure.update_xaxes(range=[low - 0.03, 1.03])
        seeds = f"seeds {', '.join(str(c['seed']) for c in cells)} from top to bottom" if len(cells) > 1 else "one seed"
        text = f"<b>{escape(task)}</b> <small>{escape(cells[0].get('description', ''))} ({escape(seeds)})</small>"
        panels.append(_figure(figure, text, f"Accuracy of each method on {task}"))
    return main + (f'<div class="wide panels">{"".join(panels)}</div>' if panels else "")


def _dots(series: Sequence[tuple[str, dict[str, Any]]]) -> go.Figure:
    """A row a method; within it a dot with its interval for each of the series (label, methods)."""
    names = list(dict.fromkeys(name for _, methods in series for name in methods))
    figure = go.Figure()
    for k, (label, methods) in enumerate(series):
        offset = 0.36 * ((len(series) - 1) / 2 - k) / max(1, len(series) - 1)
        for name, method in methods.items():
            a = method["accuracy"]
            figure.add_scatter(
                x=[a["value"]],
                y=[len(names) - 1 - names.index(name) + offset],
                error_x={"array": [a["high"] - a["value"]], "arrayminus": [a["value"] - a["low"]], "width": 0},
                mode="markers",
                marker=_look(name).marker(11 if len(series) == 1 else 8),
                name=_plain(display_name(name)),
                text=[_plain(f"{label} {_interval(a, 1, 100)}%".strip())],
                hovertemplate="%{fullData.name}: %{text}<extra></extra>",
            )
    ticks = [_plain(display_name(name)) for name in reversed(names)]
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=ticks, showgrid=False)
    figure.update_yaxes(range=[-0.6, len(names) - 0.4])
    figure.update_xaxes(tickformat=".0%", nticks=6)
    return _styled(figure, height=50 + (32 if len(series) == 1 else 26) * len(names))


def _calibration(methods: dict[str, Any], predictions: list[dict[str, Any]], has_cells: bool) -> str:
    panels = []
    by_method = _grouped(predictions, lambda p: p["variant"])
    for name in methods:
        if name in by_method:
            look, ece = _look(name), f"ECE {_interval(methods[name]['ece'], 3)}"
            text = f"{look.dot}<b>{escape(look.name)}</b> <small>{ece}</small>"
            label = f"Reliability diagram of {look.name}, {ece}"
            panels.append(_figure(_reliability(look, by_method[name]), text, label))
    if not panels:
        return ""
    pooled = " The dots pool the rows of all cells, the ECE is the mean of the cells' own." if has_cells else ""
    return (
        f"<p>Accuracy (upward) against confidence, in {N_BINS} bins of equal width; a larger dot is more rows. "
        "On the dotted diagonal a method is right as often as it says; below it, it is too sure of itself."
        f'{pooled}</p>\n<div class="panels">{"".join(panels)}</div>'
    )


def _reliability(look: Look, rows: list[dict[str, Any]]) -> go.Figure:
    confidence, correct = (np.array([p[key] for p in rows], float) for key in ("confidence", "correct"))
    index = bins(confidence)
    used = [index == k for k in range(N_BINS) if (index == k).any()]
    n = [int(rows.sum()) for rows in used]
    figure = go.Figure()
    diagonal = {"color": "#8A8A8A", "dash": "dot", "width": 1}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=diagonal, hoverinfo="skip")
    figure.add_scatter(
        x=[float(confidence[rows].mean()) for rows in used],
        y=[float(correct[rows].mean()) for rows in used],
        mode="lines+markers",
        line={"color": look.colour, "width": 1.5},
        marker={**look.marker(), "size": [5 + 13 * (count / max(n)) ** 0.5 for count in n], "opacity": 1},
        text=[f"{count} rows" for count in n],
        name=_plain(look.name),
        hovertemplate="confidence %{x:.3f}<br>accuracy %{y:.3f}<br>%{text}<extra></extra>",
    )
    figure.update_xaxes(range=[-0.04, 1.04], tickvals=[0, 0.5, 1])
    figure.update_yaxes(range=[-0.06, 1.08], tickvals=[0, 0.5, 1])
    return _styled(figure, height=210)


def _similarity(methods: dict[str, Any]) -> str:
    figure = go.Figure()
    for name, method in methods.items():
        look, layers = _look(name), method.get("similarity_by_layer")
        if layers and name != "icl":
            figure.add_scatter(
                x=list(range(1, len(layers) + 1)),
                y=list(layers),
                mode="lines+markers",
                name=_plain(look.name),
                line={"color": look.colour, "width": 2, "dash": "dash" if look.ring else "solid"},
                marker=look.marker(),
                hovertemplate="layer %{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
            )
    if not figure.data:
        return ""
    n_layers = max(len(trace.x) for trace in figure.data)
    figure.update_xaxes(dtick=max(1, -(-n_layers // 8)), showgrid=False)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.14, "yanchor": "top"})
    caption = "Cosine similarity of the attention outputs to ICL's, on the gold response; layer 1 is the first."
    return _figure(_styled(figure, height=420), caption)


def _styled(figure: go.Figure, height: int) -> go.Figure:
    """Without a template (it is 7 kB) and without colours of text and lines: the page's own script sets these."""
    clear = "rgba(0,0,0,0)"
    figure.update_layout(template="none", height=height, paper_bgcolor=clear, plot_bgcolor=clear, dragmode=False)
    figure.update_layout(margin={"l": 8, "r": 14, "t": 8, "b": 8}, hovermode="closest", font={"size": 13})
    figure.update_layout(showlegend=bool(figure.layout.showlegend))
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
    return figure


def _figure(figure: go.Figure, caption: str, label: str = "") -> str:
    """`caption` is HTML, `label` text. In its JSON plotly escapes `<`: no text of it can end the script."""
    return (
        f'<figure><div class="plot" role="img" aria-label="{escape(label or caption)}"></div>'
        f'<script type="application/json">{figure.to_json()}</script><figcaption>{caption}</figcaption></figure>\n'
    )


# --- Small pieces


def _table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of HTML cells; the first of a row is its header."""
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><caption><span>{caption}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _sign(interval: Mapping[str, float]) -> int:
    """1 or -1 if the whole interval is above or below 0, else 0."""
    return (interval["low"] > 0) - (interval["high"] < 0)


def _number(value: float, digits: int, scale: float = 1.0, sign: str = "") -> str:
    return f"{round(value * scale, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def _range(interval: Mapping[str, float], digits: int, scale: float = 1.0, sign: str = "") -> str:
    return f"[{_number(interval['low'], digits, scale, sign)}, {_number(interval['high'], digits, scale, sign)}]"


def _interval(interval: Mapping[str, float], digits: int, scale: float = 1.0, sign: str = "") -> str:
    return f"{_number(interval['value'], digits, scale, sign)} {_range(interval, digits, scale, sign)}"


def _size(interval: Mapping[str, float], digits: int, scale: float = 1.0, unit: str = "") -> str:
    """How far from 0, whichever side."""
    low, high = sorted(abs(interval[key]) for key in ("low", "high"))
    return f"{_number(abs(interval['value']), digits, scale)}{unit} {_range({'low': low, 'high': high}, digits, scale)}"


def _plain(text: str) -> str:
    """Text for plotly, which reads a subset of HTML."""
    return escape(text, quote=False)


def _clipped(text: str, n: int) -> str:
    return escape(text if len(text) <= n else f"{text[: n - 1]}…")


def _grouped(rows: Iterable[Any], key: Any) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
"""

STYLE = """
:root { --page: #ffffff; --card: #f5f5f2; --text: #1d1f21; --muted: #62666b; --line: #deded8;
  --good: #00714f; --bad: #b34700; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #16181a; --card: #202326; --text: #e9e9e6; --muted: #a3a7ab; --line: #373b3f;
    --good: #3cc79a; --bad: #f08a4b; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; overflow-wrap: break-word; }
h1 { font-size: clamp(1.6rem, 4vw, 2.2rem); line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 3rem 0 .8rem; }
header p, figcaption, caption, small, .legend, dt { color: var(--muted); }
header p { margin: 0; }
section:first-of-type h2 { margin-top: 2rem; }
.lead { font-size: clamp(1.2rem, 3vw, 1.55rem); line-height: 1.4; margin: 0 0 1rem; }
ul { padding-left: 1.1rem; margin: .6rem 0; }
li { margin: .3rem 0; }
.legend { font-size: .85rem; columns: 22rem 2; column-gap: 2.5rem; list-style: none; padding: 0; }
.legend li { break-inside: avoid; margin: 0 0 .25rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .8rem; margin: 1.6rem 0 0; }
.tiles div { background: var(--card); border-radius: .6rem; padding: .9rem 1.1rem; }
dt { font-size: .85rem; }
dd { margin: 0; font-size: 1.2rem; font-weight: 600; line-height: 1.35; }
small { display: block; font-size: .78rem; font-weight: 400; line-height: 1.35; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .85rem; padding-bottom: .5rem; }
caption span { display: block; max-width: calc(min(62rem, 100vw) - 2.5rem); position: sticky; left: 0; }
th, td { padding: .5rem .65rem; vertical-align: top; text-align: right; border-bottom: 1px solid var(--line); }
td small { white-space: nowrap; }
thead th { font-size: .82rem; vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--page); }
th:first-child { min-width: 8rem; max-width: 15rem; }
tbody th { font-weight: 600; }
details th:first-child { min-width: min(16rem, 45vw); }
details tbody th { font-weight: 400; }
q { quotes: none; white-space: pre-line; }
details td, details thead th { text-align: left; min-width: 6.3rem; }
summary { cursor: pointer; margin-bottom: .8rem; }
.right { color: var(--good); } .wrong { color: var(--bad); }
.dot { display: inline-block; width: .65em; height: .65em; margin-right: .45em; }
.dot { border: .16em solid; border-radius: 50%; background: currentColor; }
.ring { background: none; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { font-size: .85rem; }
figcaption b { color: var(--text); }
.panels { display: grid; gap: 1.4rem 1rem; margin-top: 1.4rem; }
.panels { grid-template-columns: repeat(auto-fill, minmax(max(9.4rem, 22%), 1fr)); }
.panels figure { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
@media print {
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  table { font-size: .7rem; }
  th, td { padding: .25rem; }
  tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""

# Text and lines of the plots follow the page's colours, also when the reader's theme changes or the page is printed.
SCRIPT = """
const plots = [...document.querySelectorAll(".plot")];
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const theme = () => ({
  "font.color": css("--text"), "font.family": getComputedStyle(document.body).fontFamily,
  "xaxis.gridcolor": css("--line"), "yaxis.gridcolor": css("--line"),
  "xaxis.linecolor": css("--line"), "yaxis.linecolor": css("--line"),
});
const paint = () => plots.forEach(plot => Plotly.relayout(plot, theme()));
const config = {responsive: true, displayModeBar: false};
for (const plot of plots) {
  const {data, layout} = JSON.parse(plot.nextElementSibling.textContent);
  Plotly.newPlot(plot, data, layout, config);
}
paint();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
matchMedia("print").addEventListener("change", query => plots.forEach(plot => {
  Plotly.relayout(plot, {...theme(), ...(query.matches ? {width: plot.clientWidth} : {width: null, autosize: true})});
}));
"""
