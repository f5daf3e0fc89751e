"""Sections of the page of an analysis on what training changes: on its way, and in the weights."""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from ia2.report.figures import framed, lines, look, styled

ALONG = {
    "similarity": "cosine similarity to ICL",
    "relative_l2": "relative L2 distance to ICL",
    "accuracy": "accuracy",
    "ece": "ECE",
}


def along_training(found: dict[str, Any]) -> str:
    """A curve over steps for each training that kept snapshots, and a vertical line where its adapter is from."""
    panels = ""
    for metric, title in ALONG.items():
        series = {
            name: ([point["step"] for point in of["points"]], [_value(point, metric) for point in of["points"]])
            for name, of in found.items()
        }
        figure = lines(series)
        figure.update_xaxes(dtick=None)
        for name, of in found.items():
            figure.add_vline(of["kept"], line={"color": look(name).colour, "width": 1, "dash": "dot"})
        panels += framed(figure, f"<b>{title}</b> <small>by updates</small>", f"{title} along training")
    names = ", ".join(f"{look(name).dot}{escape(look(name).name)}" for name in found)
    return (
        f"<p>{names}: every snapshot on the test rows; of activations, the attention outputs, mean over layers. A "
        f'dotted line is where the adapter that was kept is from.</p><div class="wide panels">{panels}</div>'
    )


def _value(point: dict[str, Any], metric: str) -> Any:
    name = {"similarity": "cosine"}.get(metric, metric)
    to_icl = point["distances"]["attn_out"]["icl"]["mean"]
    return to_icl[name] if name in to_icl else point[name]


def overlaps(found: dict[str, Any]) -> str:
    """Of each two adapters, the overlap of their updates of every module as a map: a row a pair, a column a module."""
    if not found["pairs"]:
        return ""
    pairs = [" with ".join(look(name).name for name in pair.split(" - ")) for pair in found["pairs"]]
    figure = go.Figure(
        go.Heatmap(
            z=[of["overlap"]["values"] for of in found["pairs"].values()],
            x=_short(found["modules"]),
            y=pairs,
            zmin=0,
            zmax=1,
            colorscale=[[0, "rgba(138,138,138,0.12)"], [1, "#0072B2"]],
            colorbar={"thickness": 10, "title": {"text": "overlap"}},
            hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category", nticks=16, showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    text = "<b>Overlap by module</b> <small>0: none, 1: the same subspace</small>"
    return framed(styled(figure, 120 + 36 * len(pairs)), text, "Overlap of the updates of two adapters by module")


def _short(modules: Sequence[str]) -> list[str]:
    """Names of modules without what all have in common: of `model.layers.0.self_attn.q_proj`, `0 q_proj`."""
    parts = [module.split(".") for module in modules]
    return [" ".join([*(part for part in of if part.isdigit()), of[-1]]) for of in parts]
