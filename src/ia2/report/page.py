"""The page of a run or a comparison: its verdict, its tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ia2.metrics import break_even
from ia2.report import figures
from ia2.report.analysis_page import analysis_sections
from ia2.report.curves import costs, risk_coverage, training_curves
from ia2.report.disagreements import disagreements
from ia2.report.figures import look
from ia2.report.frame import dotted, name_of, table, write_page
from ia2.report.numbers import MILLISECONDS, PERCENT, SCORE, SHORT, WHOLE, Form, Interval, p_value, side
from ia2.report.record import find_analysis, find_trainings, record

CHOSEN = "is the most accurate on these rows: chosen after the fact, which flatters it."
PAIRED = (
    "Paired differences on the same rows, with 95% bootstrap intervals; bold where the interval leaves out 0. "
    "A p-value, where there is one, is corrected for the number of these differences (Holm)."
)


@dataclass(frozen=True)
class Column:
    """A column of the methods table: where its value is, how it is shown, and what a reader should make of it."""

    key: str
    title: str
    better: str  # higher, lower, or nothing where no best one is marked
    form: Form
    what: str


ACCURACY = Column("accuracy", "Accuracy, %", "higher", PERCENT, "answers that are the gold response")
ECE = Column("ece", "ECE", "lower", SCORE, "expected calibration error: how far confidence is from accuracy, 0 to 1")
NLL = Column("nll", "NLL", "lower", SCORE, "negative log-likelihood of the gold response, in nats")
BRIER = Column("brier", "Brier", "lower", SCORE, "squared error of the probabilities")
SIMILARITY = Column(
    "similarity", "Similarity", "higher", SCORE, "cosine similarity of the attention outputs to ICL's; ICL's own is 1"
)
TOKENS = Column("tokens_per_query", "Tokens", "lower", WHOLE, "length of the prompt of one query")
TIME = Column(
    "seconds_per_query", "ms", "", MILLISECONDS, "time for one query on this machine, in milliseconds; lower is better"
)
TRAINING = Column("training_seconds", "Training, s", "", WHOLE, "time to train once, in seconds; lower is better")


def write_report(path: Path, metrics: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
    """Write the page.

    Args:
        path: of the HTML file, in the folder of the results: what it holds of runs and of an analysis is shown too.
        metrics: what `metrics.json` holds: of one run, or of a comparison with its `cells` (task and seed).
        predictions: rows of `ia2.evaluation.Prediction`; those of a comparison with `task` and `seed`.
    """
    methods, differences, cells = metrics["methods"], metrics["differences"], metrics.get("cells", [])
    predictions = [p for p in predictions if p.get("test", metrics.get("test")) == metrics.get("test")]
    title = metrics.get("title", f"IA2 run on {metrics['model']}")
    setting = f"Model {metrics['model']} · {metrics['n_train']} training examples · {metrics['n_test']} test rows"
    if cells:
        n_tasks, n_seeds = (len({cell[key] for cell in cells}) for key in ("task", "seed"))
        setting += f" in each cell (cells: {len(cells)}, tasks: {n_tasks}, seeds: {n_seeds})"
    analysis, which = find_analysis(path.parent, cells=True), " (the first cell analysed)" if cells else ""
    sections = {
        "Verdict": _verdict(methods, differences),
        "Methods": _methods_table(methods),
        "Accuracy": figures.accuracy(methods, cells),
        "Calibration": figures.calibration(methods, predictions, bool(cells)),
        "Risk and coverage": risk_coverage(predictions, list(methods)),
        "Cost": costs(methods),
        "Differences": _differences_table(differences),
        "Training": training_curves(find_trainings(path.parent)),
        "Similarity to ICL by layer": figures.similarity(methods),
        **{f"{name}{which}": html for name, html in (analysis_sections(analysis) if analysis else {}).items()},
        "Where methods disagree": disagreements(methods, predictions, cells or [metrics]),
        "How to read this page": _notes(bool(cells)),
        "How it was made": record(path.parent, metrics["n_test"]),
    }
    write_page(path, title, setting, sections)


# --- The verdict


def _verdict(methods: dict[str, Any], differences: dict[str, Any]) -> str:
    """About the method that is compared, or the most accurate one of several."""
    subjects = list(dict.fromkeys(pair.split(" - ")[0] for pair in differences))
    subject = max(subjects, key=lambda name: _number_of(methods[name]["accuracy"]), default="")
    claims = [_claim(pair, values) for pair, values in differences.items() if pair.split(" - ")[0] == subject]
    if not claims:
        claims = ["There is no pair of methods to compare here."]
    first, *others = claims
    if has_cost := subject != "icl" and {subject, "icl"} <= methods.keys():
        first = f"{first.removesuffix('.')}; {share_of_tokens(methods[subject], methods['icl'])}."
        others.append(_cost(subject, methods[subject], methods["icl"]))
    if len(subjects) > 1:
        others.append(f"Of the {len(subjects)} methods compared, {name_of(subject)} {CHOSEN}")
    items = "".join(f"<li>{claim}</li>" for claim in others)
    tiles = _tiles(methods, subject if has_cost else "") if len(methods) > 1 else ""
    return f'<p class="lead">{first}</p>\n<ul>{items}</ul>\n{tiles}'


def share_of_tokens(method: dict[str, Any], icl: dict[str, Any]) -> str:
    """What share of ICL's tokens a query takes."""
    ratio = icl["tokens_per_query"] / method["tokens_per_query"]
    if ratio < 1.5:
        return f"a query takes {SHORT.number(1 / ratio)} times the tokens of ICL"
    return f"a query takes 1/{ratio:.0f} of the tokens of ICL"


def _tiles(methods: dict[str, Any], subject: str) -> str:
    tiles = []
    for label, column, text in (
        ("Highest accuracy", ACCURACY, "Accuracy {}%"),
        ("Lowest calibration error", ECE, "ECE {}"),
    ):
        names, value = _best(methods, column)
        tiles.append((label, ", ".join(name_of(name) for name in names), text.format(value)))
    if subject:
        own, icl = (WHOLE.number(methods[name]["tokens_per_query"]) for name in (subject, "icl"))
        tiles.append(("Prompt of one query", f"{own} tokens", f"{name_of(subject)}; with ICL {icl}"))
    cards = [f"<div><dt>{a}</dt><dd>{b}<small>{c}</small></dd></div>" for a, b, c in tiles]
    return f'<dl class="tiles">{"".join(cards)}</dl>'


def _claim(pair: str, difference: dict[str, Interval]) -> str:
    """What the intervals of a minus b allow to say about accuracy and calibration error, and their p-values."""
    a, b = (f"<b>{name_of(name)}</b>" for name in pair.split(" - ", 1))
    accuracy, ece = difference["accuracy"], difference["ece"]
    none = "no difference in {} that this data can show ({}{})"
    if sign := _shown(accuracy):
        text = f"{a} is {PERCENT.size(accuracy, ' points')} {'above' if sign > 0 else 'below'} {b} in accuracy"
    else:
        points = f"{PERCENT.interval(accuracy, '+')} points"
        text = f"Between {a} and {b} there is {none.format('accuracy', points, _chance(accuracy))}"
    if sign := _shown(ece):
        verdict = "higher, which is worse" if sign > 0 else "lower, which is better"
        return f"{text}; the calibration error of {a} is {SCORE.size(ece)} {verdict}."
    return f"{text}; {none.format('calibration error', SCORE.interval(ece, '+'), _chance(ece))}."


def _shown(difference: Interval) -> int:
    """The side of a difference, or 0 where chance may be all there is."""
    return side(difference) if difference.get("p_holm", 0.0) < 0.05 else 0


def _chance(difference: Interval) -> str:
    return f", {p_value(difference['p_holm'])}" if "p_holm" in difference else ""


def _cost(name: str, method: dict[str, Any], icl: dict[str, Any]) -> str:
    own, other = (
        f"{WHOLE.number(m['tokens_per_query'])} tokens of prompt and {MILLISECONDS.number(m['seconds_per_query'])} ms"
        for m in (method, icl)
    )
    ratio = icl["tokens_per_query"] / method["tokens_per_query"]
    fewer = f": {ratio:.1f} times fewer tokens" if ratio >= 1.05 else ""
    once = f", after {WHOLE.number(method['training_seconds'])} s of training" if "training_seconds" in method else ""
    training = method.get("training_seconds")
    queries = break_even(training, icl["seconds_per_query"], method["seconds_per_query"]) if training else None
    pays = f" The training is paid for after {queries:,} queries." if queries is not None else ""
    return f"A query to <b>{name_of(name)}</b> takes {own}{once}; with <b>ICL</b> {other}{fewer}.{pays}"


# --- The tables


def _methods_table(methods: dict[str, Any]) -> str:
    columns = [ACCURACY, ECE, NLL, BRIER, SIMILARITY, TOKENS, TIME]
    if any(TRAINING.key in method for method in methods.values()):
        columns.append(TRAINING)
    best = {c.key: _best(methods, c)[1] for c in columns if c.better and len(methods) > 1}
    rows = []
    for name, method in methods.items():
        cells = [_value_cell(name, method, column, best.get(column.key)) for column in columns]
        rows.append([f"{dotted(name)}<small>{look(name).what}</small>", *cells])
    legend = "".join(
        f"<li><b>{c.title}</b>: {c.what}{f'; {c.better} is better' if c.better else ''}.</li>" for c in columns
    )
    caption = "Every method on the same test rows: value, and its 95% bootstrap interval below; the best value is bold."
    return f'{table(caption, ["Method", *(c.title for c in columns)], rows)}\n<ul class="legend">{legend}</ul>'


def _value_cell(name: str, method: dict[str, Any], column: Column, best: str | None) -> str:
    if column.key not in method:
        return ""
    if name == "icl" and column is SIMILARITY:
        return "1<small>by definition</small>"
    value = method[column.key]
    text = column.form.number(_number_of(value))
    interval = f"<small>{column.form.bounds(value)}</small>" if isinstance(value, dict) else ""
    return f"{f'<strong>{text}</strong>' if text == best else text}{interval}"


def _best(methods: dict[str, Any], column: Column) -> tuple[list[str], str]:
    """The methods that share the best value as it is shown, and that value. ICL is no rival in similarity to itself."""
    rivals = [name for name in methods if not (name == "icl" and column is SIMILARITY)]
    values = {name: _number_of(methods[name][column.key]) for name in rivals}
    best = column.form.number((max if column.better == "higher" else min)(values.values()))
    return [name for name, value in values.items() if column.form.number(value) == best], best


def _number_of(value: Any) -> float:
    return float(value["value"] if isinstance(value, dict) else value)


def _differences_table(differences: dict[str, Any]) -> str:
    columns = (ACCURACY, ECE, NLL, BRIER)
    rows = []
    for pair, values in differences.items():
        cells = [difference_cell(values[column.key], column) for column in columns]
        rows.append([" minus ".join(dotted(name) for name in pair.split(" - ", 1)), *cells])
    titles = [column.title.replace("%", "points") for column in columns]
    return table(PAIRED, ["Methods", *titles], rows) if rows else ""


def difference_cell(difference: Interval, column: Column) -> str:
    """A difference with its interval, and its p-value where there is one."""
    text = column.form.number(difference["value"], "+")
    if sign := side(difference):
        better = sign == (1 if column.better == "higher" else -1)
        text = f"<strong>{text}</strong> {'better' if better else 'worse'}"
    p = f"<small>{p_value(difference['p_holm'])}</small>" if "p_holm" in difference else ""
    return f"{text}<small>{column.form.bounds(difference, '+')}</small>{p}"


# --- Words


def _notes(has_cells: bool) -> str:
    drawn = "the cells and of the rows in them" if has_cells else "the test rows"
    data = "a few tasks and seeds" if has_cells else "one small set of examples"
    lines = (
        f"An interval holds 95% of resamplings of {drawn}; two that overlap can still differ: see Differences.",
        "Each interval stands alone: among many comparisons, one in twenty leaves out 0 by chance.",
        f"This is one model and {data}: it does not show what another model, task or size would do.",
        "Times are of this machine and these batches; counts of tokens carry over, milliseconds do not.",
    )
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"
