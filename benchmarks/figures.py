"""The figures of docs/results.md, as SVG: `python -m benchmarks.figures docs/study.csv docs`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from benchmarks.results import measured, paired
from docs.picture import draw
from ia2.report.figures import OTHER, framed, over_n, styled
from ia2.report.frame import write_page
from ia2.report.numbers import PERCENT, SCORE

METHODS = ("zero-shot", "icl", "sft", "ia2", "ia2-sft")
MODEL = "tiny"


def over_sizes(rows: pd.DataFrame, metric: str) -> go.Figure:
    """A line a method, over the number of examples."""
    found: list[dict[str, Any]] = []
    for method in METHODS:
        for n, own in rows[rows.method == method].groupby("n"):
            found.append({"method": method, "n": n, metric: vars(measured(own[[metric]], own.task)[metric])})
    return over_n(found, metric, PERCENT if metric == "accuracy" else SCORE)


def gains(rows: pd.DataFrame) -> go.Figure:
    """IA2→SFT minus SFT by task, with its interval over cells."""
    gap = paired(rows, "ia2-sft", "sft")[["accuracy"]]
    every = gap.index.get_level_values("task")
    tasks = gap.groupby("task").accuracy.mean().sort_values().index
    parts = [*(gap[every == task] for task in tasks), gap]
    values = [measured(part, part.index.get_level_values("task"))["accuracy"] for part in parts]
    names = [*tasks, "<b>all tasks</b>"]
    figure = go.Figure()
    figure.add_scatter(
        x=[of.value for of in values],
        y=names,
        error_x={
            "array": [of.high - of.value for of in values],
            "arrayminus": [of.value - of.low for of in values],
            "width": 0,
        },
        mode="markers",
        marker={"color": OTHER, "size": 9},
        name="IA2→SFT minus SFT, accuracy",
    )
    figure.add_vline(x=0, line={"color": "#8A8A8A", "dash": "dot", "width": 1})
    figure.update_xaxes(tickformat="+.0%")
    return styled(figure, height=380)


def main(path: Path, folder: Path) -> None:
    """Draw all three."""
    rows = pd.read_csv(path)
    rows = rows[(rows.model == MODEL) & (rows.test == rows.task)]
    figures = {"accuracy": over_sizes(rows, "accuracy"), "ece": over_sizes(rows, "ece"), "gains": gains(rows)}
    with TemporaryDirectory() as page:
        at = Path(page) / "page.html"
        write_page(at, "Results", MODEL, {"Figures": "".join(framed(of, name) for name, of in figures.items())})
        for name, svg in zip(figures, draw(at, list(figures)), strict=True):
            (folder / f"results-{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
