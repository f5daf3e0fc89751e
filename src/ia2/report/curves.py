"""Figures with a line a method: risk over coverage, cost over queries, loss over steps."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ia2.metrics import break_even
from ia2.report.figures import framed, look, plain, styled
from ia2.report.frame import dotted, name_of, table
from ia2.report.numbers import MILLISECONDS, WHOLE
from ia2.report.record import Training

N_POINTS = 60  # of a curve over rows
N_STEPS = 200  # of a curve over steps
N_CURVES = 6  # cells whose training is shown
QUERIES = [10**k for k in range(7)]


def risk_coverage(predictions: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Errors among the surest answers, over how many of these are given; rows of one confidence are given together."""
    figure = go.Figure()
    for name in names:
        if rows := [p for p in predictions if p["variant"] == name]:
            sure, wrong = (
                np.array(values, float)
                for values in zip(*((p["confidence"], not p["correct"]) for p in rows), strict=True)
            )
            order = np.argsort(-sure, kind="stable")
            last = np.flatnonzero(np.append(np.diff(sure[order]) != 0, True))  # of the rows of one confidence
            last = last[_spread(len(last), N_POINTS)]
            coverage, risk = (last + 1) / len(rows), wrong[order].cumsum()[last] / (last + 1)
            figure.add_trace(_line(name, coverage.tolist(), risk.tolist(), "%{y:.1%} wrong of the surest %{x:.0%}"))
    if not figure.data:
        return ""
    figure.update_xaxes(tickformat=".0%", range=[0, 1.02], nticks=6)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", nticks=6)
    label = "Share of wrong answers among the surest, over the share of rows that are answered"
    text = (
        "<p>If a method may keep silent where it is least sure: the share of wrong answers (upward) among the rows "
        "that it does answer (across). A method that knows what it knows rises late.</p>"
    )
    return f"{text}\n{framed(styled(figure, 340), f'{label}; rows of all cells together.', label)}"


def costs(methods: dict[str, Any]) -> str:
    """Seconds in all, training included, over the number of queries; and when a training has paid for itself."""
    if "icl" not in methods or not any("training_seconds" in of for of in methods.values()):
        return ""
    figure, rows = go.Figure(), []
    for name, of in methods.items():
        training, seconds = of.get("training_seconds", 0.0), of["seconds_per_query"]
        total = [training + seconds * n for n in QUERIES]
        figure.add_trace(_line(name, QUERIES, total, "%{y:,.1f} s for %{x:,} queries"))
        pays = break_even(training, methods["icl"]["seconds_per_query"], seconds) if training else None
        after = f"{pays:,} queries" if pays else "never" if training else "—"
        rows.append(
            [
                dotted(name),
                WHOLE.number(of["tokens_per_query"]),
                MILLISECONDS.number(seconds),
                WHOLE.number(training),
                after,
            ]
        )
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(type="log", dtick=1)
    label = "Seconds in all, training included, over the number of queries"
    caption = "What a query costs, and after how many of them a training has taken less time than ICL would have."
    titles = ["Method", "Tokens a query", "ms a query", "Training, s", "Break-even with ICL"]
    return f"{framed(styled(figure, 340), f'{label}; both axes are logarithmic.', label)}{table(caption, titles, rows)}"


def training_curves(trainings: Sequence[Training]) -> str:
    """A panel a stage: development loss over steps, or training loss where there are no development rows."""
    panels = []
    for name in dict.fromkeys(training.name for training in trainings):
        own = [training for training in trainings if training.name == name][:N_CURVES]
        figure = go.Figure()
        for training in own:
            for rate, log in training.logs.items():
                key = "eval_loss" if any("eval_loss" in entry for entry in log) else "loss"
                steps = [entry for entry in log if key in entry]
                steps = [steps[i] for i in _spread(len(steps), N_STEPS)]
                text = f"{training.cell} learning rate {rate}".strip()
                line = _line(name, [entry["step"] for entry in steps], [entry[key] for entry in steps], "")
                chosen = rate == training.rate
                line.update(
                    hovertemplate=f"{plain(text)}, step %{{x}}: %{{y:.4g}}<extra></extra>",
                    mode="lines",
                    text=[text] * len(steps),
                )
                line.update(line={"width": 2 if chosen else 1, "dash": "solid" if chosen else "dot"})
                figure.add_trace(line)
        figure.update_yaxes(rangemode="tozero", nticks=5)
        more = len({training.cell for training in trainings if training.name == name}) - len(own)
        kept = f"; {more} cells more are not shown" if more > 0 else ""
        caption = f"{look(name).dot}<b>{name_of(name)}</b> <small>loss over steps{kept}</small>"
        panels.append(framed(styled(figure, 240), caption, f"Loss of {look(name).name} over steps"))
    if not panels:
        return ""
    text = (
        "<p>The loss of the development rows, or of the training rows where there are none: a full line is the "
        "learning rate that was chosen, dotted ones are the others. Each stage has a loss of its own.</p>"
    )
    return f'{text}\n<div class="wide panels">{"".join(panels)}</div>'


def _spread(n: int, most: int) -> Any:
    """Indices of at most so many of n, spread evenly, with the first and the last."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int))


def _line(name: str, x: Sequence[float], y: Sequence[float], what: str) -> go.Scatter:
    own = look(name)
    return go.Scatter(
        x=list(x),
        y=list(y),
        mode="lines",
        name=plain(own.name),
        line={"color": own.colour, "width": 2, "dash": "dash" if own.ring else "solid"},
        hovertemplate=f"{escape(own.name)}: {what}<extra></extra>",
    )
