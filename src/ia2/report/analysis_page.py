"""The page of an analysis: why methods differ, on the same tokens."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ia2.report.figures import accuracy, dots, error_bars, framed, heat_map, lines, look, plain, styled
from ia2.report.frame import name_of, table, write_page
from ia2.report.numbers import PERCENT, SCORE, SHORT, WHOLE, Form, Interval
from ia2.report.trained import along_training, overlaps

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
NOTES = (
    "<p>Every method is read on the same tokens: the gold responses of the test rows. Values have 95% bootstrap "
    "intervals over rows, those of weights over modules. They are of one training on one draw of examples, and do not "
    "say what another would show. Numbers of layers and units begin with 1.</p>"
)
UNITS = {"heads": "head", "neurons": "neuron", "mlp_out": "feed-forward feature"}


def write_analysis(path: Path, found: dict[str, Any]) -> None:
    """Write the page of what analysis.json holds."""
    setting = f"Model {found['model']} · {found['n_train']} training examples · {found['n_test']} test rows"
    write_page(path, "Why methods differ", setting, {**analysis_sections(found), "How to read this page": NOTES})


def analysis_sections(found: dict[str, Any]) -> dict[str, str]:
    """HTML by heading of what analysis.json holds; a run's report has these too."""
    return {
        "Distance to ICL": _distances(found["distances"]),
        "Along training": along_training(found["along"]) if "along" in found else "",
        "Heads and neurons that tell ICL apart": _units(found["units"]) + _shared(found["shared_units"]),
        "What ICL's heads and neurons do in another method": _patching(found["patching"]),
        "Updates of the weights": _weights(found["weights"]) if "weights" in found else "",
        "Does it still read its context?": _context(found["context"]),
        "What is forgotten": (_forgetting(found["forgetting"]) if "forgetting" in found else "") + _text(found),
        "Which layers matter": _layers(found["layers"]) if "layers" in found else "",
        "Left out": "".join(f"<p>{escape(what)}: {escape(why)}</p>" for what, why in found["skipped"].items()),
    }


def _distances(found: dict[str, Any]) -> str:
    panels = ""
    for metric, (title, what) in METRICS.items():
        figures = ""
        for site, of in found.items():
            series = {name: ([layer + 1 for layer in of["layers"]], v[metric]) for name, v in of["icl"].items()}
            name = SITES.get(site, site)
            caption = f"<b>{name}</b> <small>{title} to ICL, by layer</small>"
            figures += framed(lines(series), caption, f"{name}: {title} to ICL, by layer")
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
            name = SITES.get(site, site)
            caption = f"<b>{name}</b> <small>cosine similarity to ICL, by response position</small>"
            figures += framed(lines(series), caption, f"{name}: cosine similarity to ICL, by response position")
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
                z=[[one["value"] for one in row] for row in of["auroc"]],
                text=[[SHORT.interval(one) for one in row] for row in of["auroc"]],
                y=layers,
                x=[str(head + 1) for head in range(len(of["auroc"][0]))],
                zmin=0.5,
                zmax=1,
                colorscale=[[0, "rgba(138,138,138,0.12)"], [1, own.colour]],
                showscale=False,
                hovertemplate="layer %{y}, head %{x}: %{text}<extra></extra>",
            )
        )
        figure.update_xaxes(type="category", nticks=8, showgrid=False)
        figure.update_yaxes(type="category", autorange="reversed", nticks=8, showgrid=False)
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
            f"{of['shared']} of {of['k']}<small>{PERCENT.interval(of['share'])}%</small>",
            SHORT.number(of["expected"]),
            SCORE.number(of["p"]) if of["p"] >= 0.001 else "&lt; 0.001",
        ]
        for kind, pairs in found.items()
        for pair, of in pairs.items()
    ]
    figures = ""
    for kind, pairs in found.items():
        own = {name: 1.0 for pair in pairs for name in pair.split(" - ")}
        label = f"Share of the first {UNITS[kind]}s that two methods have in common"
        figures += _matrix(own, {pair: of["share"]["value"] for pair, of in pairs.items()}, label)
    caption = "Of the first tenth of units of two methods, how many are the same, and how many random ones would be."
    titles = ["Methods", "Shared", "By chance", "p"]
    return f'<div class="wide panels">{figures}</div>{table(caption, titles, rows)}'


def _patching(found: dict[str, Any]) -> str:
    panels = []
    for kind, methods in found.items():
        for name, curve in methods.items():
            own, places = look(name), list(range(len(curve)))
            for metric, title in (("accuracy", "accuracy"), ("ece", "ECE"), ("nll", "NLL")):
                figure = lines({name: (places, [point[metric] for point in curve])}, own.name)
                random = {name: (places, [point[f"random_{metric}"] for point in curve])}
                figure.add_traces(lines(random, f"random {kind}", dash="dot").data)
                figure.update_xaxes(tickvals=places, ticktext=[str(point["k"]) for point in curve])
                what = f"{title} by {kind} patched; dotted: random ones"
                text = f"{own.dot}<b>{escape(own.name)}</b> <small>{what}</small>"
                panels.append(framed(figure, text, f"{title} of {own.name} by the number of {kind} patched"))
    return (
        "<p>The first k heads or neurons, in the order that half of the rows gave them, do at the response positions "
        "what they do in ICL; all else is the method's own. Measured on the other half.</p>"
        f'<div class="three panels">{"".join(panels)}</div>'
    )


def _weights(found: dict[str, Any]) -> str:
    pairs = [
        [
            " with ".join(f"{look(name).dot}{name_of(name)}" for name in pair.split(" - ")),
            _cell(of["overlap"]["mean"]),
            SCORE.number(mean["value"]) if (mean := of["expected"]["mean"]) else "—",
            _cell(of["mean_angle"]["mean"], WHOLE),
        ]
        for pair, of in found["pairs"].items()
    ]
    own = [
        [f"{look(name).dot}{name_of(name)}", *(_cell(of[metric]["mean"], SHORT) for metric in of)]
        for name, of in found["adapters"].items()
    ]
    n = len(found["modules"])
    caption = f"Overlap of the subspaces that two adapters write into, mean over {n} modules: 1 is the same subspace."
    shared = table(caption, ["Adapters", "Overlap", "Random subspaces", "Mean angle, °"], pairs) if pairs else ""
    if len(pairs) > 1:
        shared = _overlap_matrix(found) + shared
    return f"{shared}{overlaps(found)}{table('How large the updates are.', ['Adapter', 'Norm', 'Effective rank'], own)}"


def _overlap_matrix(found: dict[str, Any]) -> str:
    own = {name: 1.0 if of["norm"]["mean"]["value"] else None for name, of in found["adapters"].items()}
    means = {pair: of["overlap"]["mean"] for pair, of in found["pairs"].items()}
    values = {pair: of["value"] if of else None for pair, of in means.items()}
    return _matrix(own, values, "Overlap of the subspaces that adapters write into, of every pair")


def _matrix(own: Mapping[str, float | None], pairs: Mapping[str, float | None], label: str) -> str:
    """What every two have in common, and on the diagonal what each has with itself."""
    values = {(name, name): value for name, value in own.items()}
    for pair, value in pairs.items():
        a, b = pair.split(" - ")
        values[a, b] = values[b, a] = value
    rows = {a: [values[a, b] for b in own] for a in own}
    return framed(heat_map(rows, [plain(look(name).name) for name in own]), f"{label}.", label)


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
    rows, texts, panels = [], [], ""
    for task, prompts in found.items():
        for shown, of in prompts.items():
            where = f"<small>{escape(task)}, {'with demos' if shown == 'demos' else 'query alone'}</small>"
            for name, own in of["methods"].items():
                gap = of["differences"].get(f"{name} - before", {})
                answers = [_cell(own["accuracy"], PERCENT), _cell(gap.get("accuracy"), PERCENT, "+")]
                language = [_cell(own["perplexity"], SHORT), _cell(gap.get("nll"), SCORE, "+")]
                rows.append([f"{look(name).dot}{name_of(name)}{where}", *answers, *language])
            text = f"<b>Accuracy, %</b> {where}"
            panels += framed(dots([("", of["methods"])]), text, f"Accuracy on {task} with {shown}")
            for name, diverse in of.get("diversity", {}).items():
                texts.append(
                    [f"{look(name).dot}{name_of(name)}{where}", *(_cell(of, SHORT) for of in diverse.values())]
                )
    caption = "Tasks that nothing was trained on. The change is from before training, paired on the same rows."
    titles = ["Method", "Accuracy, %", "Change, points", "Perplexity", "Change of NLL"]
    caption_of_texts = (
        "How diverse generated answers are: different words, pairs of words and answers, over all (1 is most), and "
        "self-BLEU, how much of an answer is in the others (0 is most)."
    )
    columns = ["Method", "Words", "Pairs", "Answers", "Self-BLEU"]
    figures = f'<div class="wide panels">{panels}</div>'
    return figures + table(caption, titles, rows) + (table(caption_of_texts, columns, texts) if texts else "")


def _text(found: dict[str, Any]) -> str:
    if "text" not in found:
        return ""
    of = found["text"]
    rows = [
        [
            f"{look(name).dot}{name_of(name)}",
            _cell(own["perplexity"], SHORT),
            _cell(of["differences"].get(f"{name} - before", {}).get("nll"), SCORE, "+"),
        ]
        for name, own in of["methods"].items()
    ]
    caption = f"Running text: {of['n_tokens']} tokens of {of['n']} texts, with intervals over these."
    return table(caption, ["Method", "Perplexity", "Change of NLL"], rows)


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
                error_x=error_bars([a]),
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
