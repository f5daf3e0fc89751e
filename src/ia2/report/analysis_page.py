"""The page of an analysis: why methods differ, on the same tokens."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ia2.report.figures import accuracy, framed, look, plain, styled
from ia2.report.frame import name_of, table, write_page
from ia2.report.numbers import PERCENT, SCORE, SHORT, Form, Interval

SITES = {
    "attn_out": "Attention outputs",
    "head_out": "Heads",
    "mlp_out": "Feed-forward outputs",
    "neurons": "Neurons",
    "hidden": "Residual stream",
}
METRICS = {
    "cosine": ("cosine similarity", "Cosine similarity: whether each row is in the same direction as in ICL."),
    "cka": ("kernel alignment", "Kernel alignment (CKA): whether rows lie to each other as they do in ICL."),
    "relative_l2": (
        "relative L2 distance",
        "Relative L2 distance: how far each row is from ICL, over ICL's own length.",
    ),
}
UNITS = {"heads": "head", "neurons": "neuron", "mlp_out": "feed-forward feature"}
Series = Mapping[str, tuple[Sequence[float], Sequence[Interval]]]  # by method: x, and values with their intervals


def write_analysis(path: Path, found: dict[str, Any]) -> None:
    """Write the page of what analysis.json holds."""
    setting = f"Model {found['model']} · {found['n_train']} training examples · {found['n_test']} test rows"
    sections = {
        "Distance to ICL": _distances(found["distances"]),
        "Heads and neurons that tell ICL apart": _units(found["units"]) + _shared(found["shared_units"]),
        "What ICL's heads do in another method": _patching(found["patching"]),
        "Updates of the weights": _weights(found["weights"]) if "weights" in found else "",
        "Does it still read its context?": _context(found["context"]),
        "What is forgotten": _forgetting(found["forgetting"]) if "forgetting" in found else "",
        "Which layers matter": _layers(found["layers"]) if "layers" in found else "",
        "Left out": "".join(f"<p>{escape(what)}: {escape(why)}</p>" for what, why in found["skipped"].items()),
        "How to read this page": "<p>Every method is read on the same tokens: the gold responses of the test rows. "
        "Values have 95% bootstrap intervals over rows, those of weights over modules. They are of one training on one "
        "draw of examples, and do not say what another would show. Numbers of layers and units begin with 1.</p>",
    }
    write_page(path, "Why methods differ", setting, sections)


def _distances(found: dict[str, Any]) -> str:
    panels = ""
    for metric, (title, what) in METRICS.items():
        figures = ""
        for site, of in found.items():
            series = {name: ([layer + 1 for layer in of["layers"]], v[metric]) for name, v in of["icl"].items()}
            caption = f"<b>{SITES.get(site, site)}</b> <small>{title} to ICL, by layer</small>"
            figures += framed(_lines(series), caption, f"{SITES.get(site, site)}: {title} to ICL, by layer")
        panels += f'<p>{what}</p><div class="wide panels">{figures}</div>'
    return f"{_means(found['attn_out'])}{panels}{_positions(found)}"


def _means(found: dict[str, Any]) -> str:
    rows = []
    for name, to_icl in found["icl"].items():
        both = (to_icl, found["zero-shot"].get(name, {"mean": {}}))
        cells = [_cell(of["mean"].get(metric)) for of in both for metric in ("cosine", "relative_l2")]
        rows.append([f"{look(name).dot}{name_of(name)}", *cells])
    titles = ["Method", "Cosine to ICL", "Relative L2 to ICL", "Cosine to zero-shot", "Relative L2 to zero-shot"]
    caption = "Attention outputs, mean over layers; a cosine of 1 and a distance of 0 are no difference."
    return table(caption, titles, rows)


def _positions(found: dict[str, Any]) -> str:
    """Over the positions of responses; nothing where they are of one token."""
    figures = ""
    for site, of in found.items():
        series = {name: (list(range(1, len(v["by_position"]) + 1)), v["by_position"]) for name, v in of["icl"].items()}
        if max(len(x) for x, _ in series.values()) > 1:
            caption = f"<b>{SITES.get(site, site)}</b> <small>cosine similarity to ICL, by response position</small>"
            figures += framed(
                _lines(series), caption, f"{SITES.get(site, site)}: cosine similarity to ICL, by response position"
            )
    return f'<div class="wide panels">{figures}</div>' if figures else ""


def _units(found: dict[str, Any]) -> str:
    rows, panels = [], []
    for kind, methods in found.items():
        for name, of in methods.items():
            best = of["top"][0]
            where = (
                f"{UNITS[kind]} {best['unit'] + 1} of layer {best['layer'] + 1}: AUROC {SHORT.interval(best['auroc'])}"
            )
            counts = [str(of["n"]), str(of["n_survive"]), SHORT.number(of["n_by_chance"])]
            rows.append([f"{look(name).dot}{name_of(name)}<small>{UNITS[kind]}s</small>", *counts, where])
    for name, of in found["heads"].items():
        own = look(name)
        layers = [str(by["layer"] + 1) for by in of["by_layer"]]
        figure = go.Figure(
            go.Heatmap(
                z=of["auroc"],
                y=layers,
                x=[str(head + 1) for head in range(len(of["auroc"][0]))],
                zmin=0.5,
                zmax=1,
                colorscale=[[0, "rgba(138,138,138,0.12)"], [1, own.colour]],
                showscale=False,
                hovertemplate="layer %{y}, head %{x}: %{z:.2f}<extra></extra>",
            )
        )
        figure.update_xaxes(type="category", nticks=8)
        figure.update_yaxes(type="category", autorange="reversed", nticks=8)
        text = f"{own.dot}<b>{escape(own.name)}</b> <small>heads (across) of each layer (down)</small>"
        panels.append(framed(styled(figure, 210), text, f"AUROC of each head, ICL against {own.name}"))
    titles = ["Method", "Units", "Survive", "By chance", "First unit"]
    caption = (
        "How many units tell ICL from a method on rows that they were not found on (q &lt; 0.05), how many where the "
        "two are exchanged at random, and the unit found first, with its AUROC (0.5: not at all, 1: always)."
    )
    return (
        f"{table(caption, titles, rows)}<p>AUROC of every head: the fuller the colour, the better it tells ICL apart, "
        f'from 0.5 to 1.</p><div class="panels">{"".join(panels)}</div>'
    )


def _shared(found: dict[str, Any]) -> str:
    rows = [
        [
            f"{' with '.join(name_of(name) for name in pair.split(' - '))}<small>{UNITS[kind]}s</small>",
            f"{of['shared']} of {of['k']}",
            SHORT.number(of["expected"]),
            SCORE.number(of["p"]) if of["p"] >= 0.001 else "&lt; 0.001",
        ]
        for kind, pairs in found.items()
        for pair, of in pairs.items()
    ]
    caption = "Of the first tenth of units of two methods, how many are the same, and how many random ones would be."
    return table(caption, ["Methods", "Shared", "By chance", "p"], rows)


def _patching(found: dict[str, Any]) -> str:
    panels = []
    for name, curve in found.items():
        own = look(name)
        places = list(range(len(curve)))
        for metric, title in (("nll", "NLL"), ("accuracy", "accuracy")):
            figure = _lines({name: (places, [point[metric] for point in curve])}, own.name)
            random = _lines(
                {name: (places, [point[f"random_{metric}"] for point in curve])}, "random heads", dash="dot"
            )
            figure.add_traces(random.data)
            figure.update_xaxes(tickvals=places, ticktext=[str(point["k"]) for point in curve])
            text = f"{own.dot}<b>{escape(own.name)}</b> <small>{title} by heads patched; dotted: random heads</small>"
            panels.append(framed(figure, text, f"{title} of {own.name} by the number of heads patched"))
    return (
        "<p>The first k heads, in the order that half of the rows gave them, do at the response positions what they do "
        "in ICL; all else is the method's own. Measured on the other half.</p>"
        f'<div class="wide panels">{"".join(panels)}</div>'
    )


def _weights(found: dict[str, Any]) -> str:
    pairs = [
        [
            " with ".join(f"{look(name).dot}{name_of(name)}" for name in pair.split(" - ")),
            _cell(of["overlap"]["mean"]),
            SCORE.number(of["expected"]["mean"]["value"]),
        ]
        for pair, of in found["pairs"].items()
    ]
    own = [
        [f"{look(name).dot}{name_of(name)}", *(_cell(of[metric]["mean"], SHORT) for metric in of)]
        for name, of in found["adapters"].items()
    ]
    n = len(found["modules"])
    caption = f"Overlap of the subspaces that two adapters write into, mean over {n} modules: 1 is the same subspace."
    overlaps = table(caption, ["Adapters", "Overlap", "Random subspaces"], pairs) if pairs else ""
    return f"{overlaps}{table('How large the updates are.', ['Adapter', 'Norm', 'Effective rank'], own)}"


def _context(found: dict[str, Any]) -> str:
    rows = [
        [
            " minus ".join(name_of(name) for name in pair.split(" - ")),
            _cell(of["accuracy"], PERCENT, "+"),
            _cell(of["ece"], SCORE, "+"),
        ]
        for pair, of in found["differences"].items()
    ]
    caption = "What demos in the prompt add to an adapter, and what an adapter adds to ICL; paired, on the same rows."
    return f"{accuracy(found['methods'], [])}{table(caption, ['Methods', 'Accuracy, points', 'ECE'], rows)}"


def _forgetting(found: dict[str, Any]) -> str:
    rows, texts = [], []
    for task, prompts in found.items():
        for shown, of in prompts.items():
            where = f"<small>{escape(task)}, {'with demos' if shown == 'demos' else 'query alone'}</small>"
            for name, own in of["methods"].items():
                gap = of["differences"].get(f"{name} - before", {})
                answers = [_cell(own["accuracy"], PERCENT), _cell(gap.get("accuracy"), PERCENT, "+")]
                language = [_cell(own["perplexity"], SHORT), _cell(gap.get("nll"), SCORE, "+")]
                rows.append([f"{look(name).dot}{name_of(name)}{where}", *answers, *language])
            for name, distinct in of.get("diversity", {}).items():
                texts.append([f"{look(name).dot}{name_of(name)}{where}", *map(SHORT.number, distinct.values())])
    caption = "Tasks that nothing was trained on. The change is from before training, paired on the same rows."
    titles = ["Method", "Accuracy, %", "Change, points", "Perplexity", "Change of NLL"]
    diverse = "How diverse generated answers are: different words, pairs of words and answers, over all; 1 is most."
    columns = ["Method", "Words", "Pairs", "Answers"]
    return table(caption, titles, rows) + (table(diverse, columns, texts) if texts else "")


def _layers(found: dict[str, Any]) -> str:
    columns = (("accuracy", "Accuracy, %", PERCENT), ("ece", "ECE", SCORE), ("similarity", "Similarity", SCORE))
    looks = {**{look(name).name: name for name in found["methods"]}, **dict.fromkeys(found["layers"], "ia2")}
    values = list({**found["methods"], **found["layers"]}.values())
    panels = ""
    for metric, title, _ in columns:
        figure = go.Figure()
        for (label, method), of in zip(looks.items(), values, strict=True):
            a = of[metric]
            figure.add_scatter(
                x=[a["value"]],
                y=[label],
                error_x={"array": [a["high"] - a["value"]], "arrayminus": [a["value"] - a["low"]], "width": 0},
                mode="markers",
                marker=look(method).marker(),
                name=plain(label),
                hovertemplate="%{y}: %{x:.3f}<extra></extra>",
            )
        figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
        panels += framed(styled(figure, 60 + 24 * len(looks)), f"<b>{title.split(',')[0]}</b>", f"{title} by layers")
    rows = [
        [escape(label), *(_cell(of[metric], form) for metric, _, form in columns)]
        for label, of in zip(looks, values, strict=True)
    ]
    caption = "IA2 aligned at some layers only (numbered from 0, as the option does), beside zero-shot and ICL."
    return f'<div class="wide panels">{panels}</div>{table(caption, ["Layers", *(c[1] for c in columns)], rows)}'


def _cell(interval: Interval | None, form: Form = SCORE, sign: str = "") -> str:
    return f"{form.number(interval['value'], sign)}<small>{form.bounds(interval, sign)}</small>" if interval else "—"


def _lines(series: Series, label: str = "", dash: str = "solid") -> go.Figure:
    """A line a method with its interval as bars."""
    figure = go.Figure()
    for name, (x, intervals) in series.items():
        own, values = look(name), [of["value"] for of in intervals]
        figure.add_scatter(
            x=list(x),
            y=values,
            error_y={
                "array": [of["high"] - of["value"] for of in intervals],
                "arrayminus": [of["value"] - of["low"] for of in intervals],
                "width": 0,
                "thickness": 1,
            },
            mode="lines+markers",
            name=plain(label or own.name),
            line={"color": own.colour, "width": 2, "dash": "dash" if own.ring else dash},
            marker=own.marker(5),
            hovertemplate="%{y:.3f}<extra>%{fullData.name}</extra>",
        )
    longest = max(len(x) for x, _ in series.values())
    figure.update_xaxes(dtick=max(1, -(-longest // 8)), showgrid=False)
    return styled(figure, height=260)
