"""The figures of the page as HTML with their data in it, and how a method looks and is called everywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ia2.metrics import N_BINS, bins
from ia2.report.numbers import PERCENT, SCORE, Form, Interval

MOST_NUMBERS = 12  # columns of a heat map whose cells can hold a number
Series = Mapping[str, tuple[Sequence[float], Sequence[Interval]]]  # by method: x, and values with their intervals
VARIETIES = {
    "unlabelled": "the same, with more queries, which ICL answered",
    "temperature": "the same answers, made less or more sure by one number",
    "contextual": "corrected by what the model says to an empty query",
    "demos": "with the examples in the prompt after all",
}


@dataclass(frozen=True)
class Look:
    """How a method appears everywhere: a name for people, what it is, a colour, and a ring or a full dot in it."""

    name: str
    what: str
    colour: str
    ring: bool = False

    @property
    def dot(self) -> str:
        """HTML that says which colour the method has; what it stands in is shown and hidden with the method."""
        kind = "dot ring" if self.ring else "dot"
        return f'<i class="{kind}" style="color:{self.colour}" data-method="{escape(self.name)}"></i>'

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
    "sft-ia2": Look("SFT→IA2", "SFT first, then IA2", "#0072B2"),
    "joint": Look("joint", "IA2 and SFT at once", "#B09800"),
    "hidden": Look("hidden", "an adapter trained on ICL's residual stream", "#7A4FBF"),
    "hidden-sft": Look("hidden→SFT", "the same, then SFT on the labels", "#A05A2C"),
    "soft-sft": Look("soft→SFT", "soft labels first, then SFT", "#C0399F"),
    "ia2+soft": Look("IA2 + soft labels", "an adapter trained on both", "#2F7F7F"),
    "icl-distill": Look("ICL distillation", "SFT on what ICL answers", "#5B5B9F"),
}
OTHER = "#7B8087"  # a grey that is read on white and on black


def look(method: str) -> Look:
    """How a method looks; one that is not known has its own name."""
    base, _, variety = method.partition("+") if method not in LOOKS else (method, "", "")
    found = LOOKS.get(base, Look(base, "", OTHER))
    if not variety:
        return found
    what = VARIETIES.get(variety, "")
    return replace(found, name=f"{found.name} + {variety}", what=what, ring=True)


def display_name(method: str) -> str:
    """The name of a method for people; an unknown one as it is."""
    return look(method).name


def accuracy(methods: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    """All methods with their intervals; below it, a panel a task, if there are cells."""
    caption = "Accuracy with its 95% interval" + (", mean over all cells." if cells else ".")
    figure = framed(dots([("", methods)]), caption)
    if not cells:
        return figure
    low = min(method["accuracy"]["low"] for cell in cells for method in cell["methods"].values())
    panels = []
    for task in dict.fromkeys(cell["task"] for cell in cells):
        own = [cell for cell in cells if cell["task"] == task]
        panel = dots([(f"seed {cell['seed']}", cell["methods"]) for cell in own])
        panel.update_xaxes(range=[low - 0.03, 1.03])
        seeds = f"seeds {', '.join(str(cell['seed']) for cell in own)} from top to bottom" if own[1:] else "one seed"
        text = f"<b>{escape(task)}</b> <small>{escape(own[0]['description'])} ({escape(seeds)})</small>"
        panels.append(framed(panel, text, f"Accuracy of each method on {task}"))
    return f'{figure}<div class="wide panels">{"".join(panels)}</div>'


def dots(series: Sequence[tuple[str, dict[str, Any]]], key: str = "accuracy", form: Form = PERCENT) -> go.Figure:
    """A row a method; within it a dot with its interval for each of the series (label, methods)."""
    names = list(dict.fromkeys(name for _, methods in series for name in methods))
    figure = go.Figure()
    for k, (label, methods) in enumerate(series):
        offset = 0.36 * ((len(series) - 1) / 2 - k) / max(1, len(series) - 1)
        for name, method in methods.items():
            a = method[key]
            figure.add_scatter(
                x=[a["value"]],
                y=[len(names) - 1 - names.index(name) + offset],
                error_x=error_bars([a]),
                mode="markers",
                marker=look(name).marker(11 if len(series) == 1 else 8),
                name=plain(display_name(name)),
                text=[plain(f"{label} {form.interval(a)}{form.unit}".strip())],
                hovertemplate="%{fullData.name}: %{text}<extra></extra>",
            )
    ticks = [plain(display_name(name)) for name in reversed(names)]
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=ticks, showgrid=False, range=[-0.6, len(names) - 0.4]
    )
    figure.update_xaxes(tickformat=form.ticks, nticks=6)
    return styled(figure, height=50 + (32 if len(series) == 1 else 26) * len(names))


def over_n(rows: Sequence[dict[str, Any]], key: str, form: Form) -> go.Figure:
    """A line a method, over the number of examples `n`; methods stand a little apart, so that intervals can be seen."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    sizes = sorted({row["n"] for row in rows})
    figure = go.Figure()
    for k, name in enumerate(names):
        own, found = look(name), sorted((row for row in rows if row["method"] == name), key=lambda row: row["n"])
        apart = 1.03 ** (k - (len(names) - 1) / 2)
        values = [row[key] for row in found]
        figure.add_scatter(
            x=[row["n"] * apart for row in found],
            y=[value["value"] for value in values],
            error_y=error_bars(values),
            mode="lines+markers",
            name=plain(own.name),
            line={"color": own.colour, "width": 2, "dash": "dash" if own.ring else "solid"},
            marker=own.marker(7),
            text=[f"N = {row['n']}: {form.interval(row[key])}{form.unit}" for row in found],
            hovertemplate="%{fullData.name}, %{text}<extra></extra>",
        )
    figure.update_xaxes(type="log", tickvals=sizes, ticktext=[str(n) for n in sizes], showgrid=False)
    figure.update_yaxes(tickformat=form.ticks, nticks=6)
    figure.update_layout(meta="n")  # for the page's script: here one N can be chosen
    return styled(figure, height=300)


def calibration(methods: dict[str, Any], predictions: Sequence[dict[str, Any]], has_cells: bool) -> str:
    """A reliability diagram of each method that has predictions."""
    panels = []
    for name, method in methods.items():
        if rows := [p for p in predictions if p["variant"] == name]:
            own, ece = look(name), f"ECE {SCORE.interval(method['ece'])}"
            text = f"{own.dot}<b>{escape(own.name)}</b> <small>{ece}</small>"
            panels.append(framed(_reliability(own, rows), text, f"Reliability diagram of {own.name}, {ece}"))
    if not panels:
        return ""
    pooled = " The dots pool the rows of all cells, the ECE is the mean of the cells' own." if has_cells else ""
    return (
        f"<p>Accuracy (upward) against confidence, in {N_BINS} bins of equal width; a larger dot is more rows. "
        "On the dotted diagonal a method is right as often as it says; below it, it is too sure of itself."
        f'{pooled}</p>\n<div class="panels">{"".join(panels)}</div>'
    )


def _reliability(own: Look, rows: list[dict[str, Any]]) -> go.Figure:
    confidence, correct = (np.array([p[key] for p in rows], float) for key in ("confidence", "correct"))
    index = bins(confidence)
    used = [index == k for k in np.unique(index)]
    n = [int(rows.sum()) for rows in used]
    figure = go.Figure()
    diagonal = {"color": "#8A8A8A", "dash": "dot", "width": 1}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=diagonal, hoverinfo="skip")
    figure.add_scatter(
        x=[float(confidence[rows].mean()) for rows in used],
        y=[float(correct[rows].mean()) for rows in used],
        mode="lines+markers",
        line={"color": own.colour, "width": 1.5},
        marker={**own.marker(), "size": [5 + 13 * (count / max(n)) ** 0.5 for count in n], "opacity": 1},
        text=[f"{count} rows" for count in n],
        name=plain(own.name),
        cliponaxis=False,
        hovertemplate="confidence %{x:.3f}<br>accuracy %{y:.3f}<br>%{text}<extra></extra>",
    )
    figure.update_xaxes(range=[-0.04, 1.04], tickvals=[0, 0.5, 1])
    figure.update_yaxes(range=[-0.06, 1.08], tickvals=[0, 0.5, 1])
    return styled(figure, height=210)


def similarity(methods: dict[str, Any]) -> str:
    """A row a method, a column a layer; not of ICL, which is what the others are compared with."""
    layers = {name: method["similarity_by_layer"] for name, method in methods.items() if name != "icl"}
    if not layers:
        return ""
    caption = "Cosine similarity of the attention outputs to ICL's, on the gold response; layer 1 is the first."
    return framed(heat_map(layers), caption)


def heat_map(values: Mapping[str, Sequence[float | None]], columns: Sequence[str] = ()) -> go.Figure:
    """A row a method, which shows its numbers where there is room; `columns` are layers, from 1, if not given."""
    n, names = max(map(len, values.values())), [plain(display_name(name)) for name in values]
    figure = go.Figure()
    for i, (name, row) in enumerate(zip(names, values.values(), strict=True)):
        figure.add_heatmap(
            z=[row],
            x=list(columns) or [str(k + 1) for k in range(n)],
            y0=i,
            dy=1,
            name=name,
            coloraxis="coloraxis",
            texttemplate="%{z:.2f}" if n <= MOST_NUMBERS else "",
            hovertemplate="%{fullData.name}, %{x}: %{z:.3f}<extra></extra>",
            xgap=2,
            ygap=2,
        )
    styled(figure, height=70 + 34 * len(values))
    figure.update_xaxes(type="category", side="top", nticks=16, showgrid=False, showline=False)
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed", showgrid=False)
    bar = {"thickness": 10, "outlinewidth": 0, "nticks": 4}
    figure.update_layout(coloraxis={"colorscale": "Cividis", "colorbar": bar})
    return figure


def error_bars(intervals: Sequence[Interval]) -> dict[str, Any]:
    """Bars of intervals around their values, for plotly."""
    above = [interval["high"] - interval["value"] for interval in intervals]
    below = [interval["value"] - interval["low"] for interval in intervals]
    return {"array": above, "arrayminus": below, "width": 0, "thickness": 1.2}


def lines(series: Series, label: str = "", dash: str = "solid") -> go.Figure:
    """A line a method with its interval as bars."""
    figure = go.Figure()
    for name, (x, intervals) in series.items():
        own, values = look(name), [of["value"] for of in intervals]
        figure.add_scatter(
            x=list(x),
            y=values,
            error_y=error_bars(intervals),
            mode="lines+markers",
            name=plain(label or own.name),
            line={"color": own.colour, "width": 2, "dash": "dash" if own.ring else dash},
            marker=own.marker(5),
            hovertemplate="%{y:.3f}<extra>%{fullData.name}</extra>",
        )
    longest = max(len(x) for x, _ in series.values())
    figure.update_xaxes(dtick=max(1, -(-longest // 8)), showgrid=False)
    figure.update_yaxes(nticks=6)
    return styled(figure, height=260)


def styled(figure: go.Figure, height: int) -> go.Figure:
    """Without a template (it is 7 kB) and without colours of text and lines: the page's own script sets these."""
    clear = "rgba(0,0,0,0)"
    figure.update_layout(template="none", height=height, paper_bgcolor=clear, plot_bgcolor=clear, dragmode=False)
    figure.update_layout(margin={"l": 8, "r": 20, "t": 8, "b": 8}, hovermode="closest", font={"size": 13})
    figure.update_layout(showlegend=False)
    figure.update_xaxes(automargin="height", zeroline=False)  # with the width, where ticks are would move in turn
    figure.update_yaxes(automargin=True, zeroline=False)
    return figure


def framed(figure: go.Figure, caption: str, label: str = "") -> str:
    """A figure as HTML; `caption` is HTML, `label` text.

    In its JSON plotly escapes `<`: no text of it can end the script.
    """
    label = escape(label or caption)
    return (
        f'<figure><div class="plot" role="img" aria-label="{label}"></div>'
        f'<script type="application/json">{figure.to_json()}</script><figcaption>{_buttons(label)}{caption}'
        "</figcaption></figure>\n"
    )


def _buttons(label: str) -> str:
    return (
        f'<span class="tools"><button type="button" class="data" aria-expanded="false" aria-label="Data: {label}">data'
        f'</button><button type="button" class="svg" aria-label="Save as SVG: {label}">svg</button></span>'
    )


def plain(text: str) -> str:
    """Text for plotly, which reads a subset of HTML."""
    return escape(text, quote=False)
