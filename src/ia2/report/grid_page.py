"""The page of what a sweep says of similarity to ICL, and of the number of examples."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ia2.report.figures import framed, look, plain, styled
from ia2.report.frame import name_of, table, write_page
from ia2.report.numbers import PERCENT, SHORT, Form, p_value

METRICS = {"accuracy": ("Accuracy", PERCENT), "ece": ("ECE", SHORT)}
KINDS = {
    "pearson": "Correlation",
    "spearman": "Of ranks",
    "partial": "Within tasks and N",
}
N_UNITS = 5
NOTES = (
    "<p>A point is a cell and a trained method. Correlations have 95% bootstrap intervals over tasks; the last takes "
    "out what task and N explain of both. A correlation does not say that similarity is the reason.</p>"
    "<p>The lines over N have 95% bootstrap intervals over tasks and the seeds within them, and say nothing of N that "
    "were not measured.</p>"
)


def write_grid_analysis(path: Path, found: dict[str, Any]) -> None:
    """Write the page of what a sweep's analysis.json holds."""
    setting = f"{', '.join(found['models'])} · {found['n_cells']} cells"
    write_page(path, "What a sweep says", setting, {**grid_sections(found), "How to read this page": NOTES})


def grid_sections(found: dict[str, Any]) -> dict[str, str]:
    """HTML by heading of what a sweep's analysis.json holds; the report of the sweep has these too."""
    return {
        "Similarity to ICL and performance": _performance(found["performance"]) if "performance" in found else "",
        "Until which N": _crossings(found["crossings"]),
        "Heads and neurons that several cells have in common": _recurring(found.get("recurring", {})),
        "Left out": "".join(f"<p>{escape(what)}: {escape(why)}</p>" for what, why in found["skipped"].items()),
    }


def _performance(found: dict[str, Any]) -> str:
    names = list(dict.fromkeys(point["method"] for point in found["points"]))
    panels, rows = "", []
    for metric, (title, form) in METRICS.items():
        figure = scatter(found["points"], names, metric, form)
        caption = f"<b>{title}</b> <small>over cosine similarity to ICL</small>"
        panels += framed(figure, caption, f"{title} over similarity to ICL, a point a cell and method")
        rows.append([title, *(SHORT.interval(found[metric][kind], "+") for kind in KINDS)])
    key = "".join(f"<li>{look(name).dot}{name_of(name)}</li>" for name in names)
    caption = f"{len(found['points'])} points of {found['n_tasks']} tasks."
    return (
        f'<ul class=key>{key}</ul>\n<div class="wide panels">{panels}</div>'
        f"{table(caption, ['With similarity', *KINDS.values()], rows)}"
    )


def scatter(points: Sequence[dict[str, Any]], names: Sequence[str], metric: str, form: Form) -> go.Figure:
    """A dot a cell and method."""
    figure = go.Figure()
    for name in names:
        own = [point for point in points if point["method"] == name]
        figure.add_scatter(
            x=[point["similarity"] for point in own],
            y=[point[metric] for point in own],
            mode="markers",
            name=plain(look(name).name),
            marker=look(name).marker(5),
            text=[plain(f"{point['task']}, N = {point['n']}, seed {point['seed']}") for point in own],
            hovertemplate="%{fullData.name}, %{text}: %{y:.3f} at %{x:.3f}<extra></extra>",
        )
    figure.update_yaxes(tickformat=form.ticks, nticks=6)
    return styled(figure, height=300)


def _crossings(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    for of in found:
        where = f"<small>{escape(of['model'])}, {escape(of['adapter'])}</small>"
        line = of["pooled"]
        title, form = METRICS[of["metric"]]
        values = [form.interval(line[key], "+") for key in ("first", "last", "per_doubling")]
        rows.append([f"{name_of(of['method'])} minus {name_of(of['minus'])}{where}", title, *values, crosses_at(of)])
    if not rows:
        return ""
    caption = "A line in log N through the difference in accuracy, in points, and in ECE, all tasks together."
    titles = ["Methods", "Metric", "At the smallest N", "At the largest N", "Each doubling", "Crosses zero at N"]
    panels: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for of in found:
        panels.setdefault((of["model"], of["adapter"], of["metric"]), []).append(of)
    figures = "".join(map(_over_n, panels.values()))
    return f'<div class="wide panels">{figures}</div>{table(caption, titles, rows)}'


def _over_n(found: Sequence[dict[str, Any]]) -> str:
    """Of a model, adapter and metric: the mean difference at each N, and the line through it."""
    figure, (title, form) = go.Figure(), METRICS[found[0]["metric"]]
    for of in found:
        own, sizes = look(of["method"]), of["sizes"]
        line = [of["pooled"][end]["value"] for end in ("first", "last")]
        shared = {"name": plain(own.name), "line": {"color": own.colour, "width": 2}, "marker": own.marker(6)}
        hover = "N = %{x}: %{y:+.3f}<extra>%{fullData.name}</extra>"
        figure.add_scatter(x=sizes, y=of["means"], mode="markers", hovertemplate=hover, **shared)
        figure.add_scatter(x=[sizes[0], sizes[-1]], y=line, mode="lines", hoverinfo="skip", showlegend=False, **shared)
    figure.add_hline(0, line={"color": "#8A8A8A", "width": 1})
    figure.update_xaxes(type="log", tickvals=found[0]["sizes"], ticktext=[str(n) for n in found[0]["sizes"]])
    figure.update_yaxes(tickformat=form.ticks, nticks=6)
    setting = f"over N; {escape(found[0]['model'])}, {escape(found[0]['adapter'])}"
    caption = f"<b>{title} minus SFT's</b> <small>{setting}</small>"
    return framed(styled(figure, height=300), caption, f"{title} minus that of SFT over N")


def _recurring(found: dict[str, Any]) -> str:
    rows = [
        [
            f"{look(name).dot}{name_of(name)}<small>{kind}; {escape(model)}, {len(of['runs'])} cells</small>",
            SHORT.number(of["jaccard"]),
            SHORT.number(of["by_chance"]),
            p_value(of["p"]),
            ", ".join(f"{layer + 1}.{unit + 1} ({n})" for layer, unit, n in of["units"][:N_UNITS]),
        ]
        for kind, models in found.items()
        for model, methods in models.items()
        for name, of in methods.items()
    ]
    caption = (
        "How many of the units that tell ICL best from a method are the same in two cells (Jaccard, mean over pairs), "
        "how many if units are permuted within layers, and which are found most often: layer.unit (cells)."
    )
    return table(caption, ["Method", "In common", "By chance", "p", "Units"], rows) if rows else ""


def crosses_at(found: dict[str, Any]) -> str:
    """Where a line crosses zero, with its interval, as text."""
    line, (first, *_, last) = found["pooled"], found["sizes"]
    if line["n"] is None:
        return f"not from {first} to {last}"
    low = f"below {first}" if line["low"] is None else f"{line['low']:.0f}"
    high = f"above {last}" if line["high"] is None else f"{line['high']:.0f}"
    return f"{line['n']:.0f} [{low}, {high}]"
