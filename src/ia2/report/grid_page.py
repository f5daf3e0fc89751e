"""The page of what a sweep says of similarity to ICL, and of the number of examples."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ia2.report.figures import error_bars, framed, look, plain, styled
from ia2.report.frame import name_of, table, write_page
from ia2.report.numbers import PERCENT, SHORT, Form, p_value

METRICS = {"accuracy": ("Accuracy", PERCENT), "ece": ("ECE", SHORT)}
KINDS = {
    "pearson": "Correlation",
    "spearman": "Of ranks",
    "partial": "Within tasks and N",
}
N_UNITS, N_TASKS = 5, 4  # at most: shown of a method, and tasks that have figures of their own
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
    rows, panels = [], dict[tuple[str, ...], list[dict[str, Any]]]()
    for of in found:
        title, form = METRICS[of["metric"]]
        for where, line in _lines(of).items():
            small = f"<small>{escape(' · '.join((where, of['model'], of['adapter'])))}</small>"
            ends = [line[key] for key in ("first", "last", "per_doubling")]
            values = [f"{form.number(of['value'], '+')}<small>{form.bounds(of, '+')}</small>" for of in ends]
            names = f"{look(of['method']).dot}{name_of(of['method'])} minus {name_of(of['minus'])}"
            rows.append([f"{names}{small}", title, *values, crosses_at(line, of["sizes"])])
            key = (of["model"], of["adapter"], where, of["metric"])
            panels.setdefault(key, []).append({**line, "method": of["method"], "sizes": of["sizes"]})
    if not rows:
        return ""
    caption = "A line in log N through the difference in accuracy, in points, and in ECE."
    titles = ["Methods", "Metric", "At the smallest N", "At the largest N", "Each doubling", "Crosses zero at N"]
    figures = ""
    for metric in METRICS:
        own = "".join(_over_n(key, lines) for key, lines in panels.items() if key[-1] == metric)
        figures += f'<div class="wide panels">{own}</div>'
    return figures + table(caption, titles, rows)


def _lines(of: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Means and line of all tasks together, and of each, if there are a few."""
    tasks = of["tasks"] if 1 < len(of["tasks"]) <= N_TASKS else {}
    return {"all tasks": {"means": of["means"], **of["pooled"]}, **tasks}


def _over_n(key: tuple[str, ...], lines: Sequence[dict[str, Any]]) -> str:
    """Of a model, adapter, task and metric: the mean difference at each N, and the line through it."""
    model, adapter, where, metric = key
    figure, (title, form) = go.Figure(), METRICS[metric]
    for k, line in enumerate(lines):
        own, means, sizes = look(line["method"]), line["means"], line["sizes"]
        apart = 1.06 ** (k - (len(lines) - 1) / 2)
        shared = {"name": plain(own.name), "line": {"color": own.colour, "width": 2}, "marker": own.marker(6)}
        figure.add_scatter(
            x=[of["n"] * apart for of in means],
            y=[of["value"] for of in means],
            error_y=error_bars(means),
            mode="markers",
            text=[f"N = {of['n']}: {form.interval(of, '+')}" for of in means],
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            **shared,
        )
        ends = [line[end]["value"] for end in ("first", "last")]
        figure.add_scatter(x=[sizes[0], sizes[-1]], y=ends, mode="lines", hoverinfo="skip", showlegend=False, **shared)
    figure.add_hline(0, line={"color": "#8A8A8A", "width": 1})
    ticks = lines[0]["sizes"]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[str(n) for n in ticks])
    figure.update_yaxes(tickformat=form.ticks, nticks=6)
    caption = f"<b>{title} minus SFT's, {escape(where)}</b> <small>over N; {escape(model)}, {escape(adapter)}</small>"
    return framed(styled(figure, height=300), caption, f"{title} minus that of SFT over N, {where}")


def _recurring(found: dict[str, Any]) -> str:
    rows = [
        [
            f"{look(name).dot}{name_of(name)}<small>{kind}; {escape(model)}, {len(of['runs'])} cells</small>",
            f"{where}<small>{common['n_pairs']} pairs</small>",
            f"{SHORT.number(common['jaccard']['value'])}<small>{SHORT.bounds(common['jaccard'])}</small>",
            SHORT.number(common["by_chance"]),
            p_value(common["p"]),
            ", ".join(f"{layer + 1}.{unit + 1} ({n})" for layer, unit, n in of["units"][:N_UNITS]),
        ]
        for kind, models in found.items()
        for model, methods in models.items()
        for name, of in methods.items()
        for where, common in of["pairs"].items()
    ]
    caption = (
        "How many of the units that tell ICL best from a method are the same in two cells (Jaccard, mean over pairs, "
        "with an interval over cells), how many if units are permuted within layers, and which are found most often: "
        "layer.unit (cells)."
    )
    figures = ""
    for kind, models in found.items():
        for model, methods in models.items():
            for where in dict.fromkeys(where for of in methods.values() for where in of["pairs"]):
                own = {name: of["pairs"][where] for name, of in methods.items() if where in of["pairs"]}
                figures += _common(kind, where, model, own)
    titles = ["Method", "Cells", "In common", "By chance", "p", "Units"]
    return f'<div class="wide panels">{figures}</div>{table(caption, titles, rows)}' if rows else ""


def _common(kind: str, where: str, model: str, methods: dict[str, Any]) -> str:
    """A row a method: what pairs of its cells have in common, and a ring for what they would by chance."""
    figure, names = go.Figure(), list(methods)
    for i, (name, of) in enumerate(methods.items()):
        own, jaccard, chance = look(name), of["jaccard"], of["by_chance"]
        for value, symbol, bars, text in (
            (chance, "circle-open", None, f"by chance {SHORT.number(chance)}"),
            (jaccard["value"], "circle", error_bars([jaccard]), f"in common {SHORT.interval(jaccard)}"),
        ):
            figure.add_scatter(
                x=[value],
                y=[len(names) - 1 - i],
                error_x=bars,
                mode="markers",
                name=plain(own.name),
                marker={"color": own.colour, "size": 10, "symbol": symbol},
                text=[text],
                hovertemplate="%{fullData.name}, %{text}<extra></extra>",
            )
    ticks = [plain(look(name).name) for name in reversed(names)]
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=ticks, showgrid=False)
    figure.update_xaxes(range=[-0.03, 1.03], nticks=6)
    caption = f"<b>{kind.capitalize()} in common, {where}</b> <small>Jaccard; ring: by chance; {escape(model)}</small>"
    label = f"{kind.capitalize()} that cells have in common, {where}, {model}"
    return framed(styled(figure, 50 + 30 * len(names)), caption, label)


def crosses_at(line: dict[str, Any], sizes: Sequence[int]) -> str:
    """Where a line crosses zero, with its interval, as text."""
    first, *_, last = sizes
    if line["n"] is None:
        return f"not from {first} to {last}"
    low = f"below {first}" if line["low"] is None else f"{line['low']:.0f}"
    high = f"above {last}" if line["high"] is None else f"{line['high']:.0f}"
    return f"{line['n']:.0f} [{low}, {high}]"
