"""The page of a run or a comparison: its verdict, its tables."""

from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ia2.report import figures
from ia2.report.figures import look
from ia2.report.frame import name_of, table, write_page
from ia2.report.numbers import MILLISECONDS, PERCENT, SCORE, WHOLE, Form, Interval, p_value, side

N_DISAGREEMENTS = 40
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
        path: of the HTML file.
        metrics: what `metrics.json` holds: of one run, or of the demo with its `cells` (task and seed).
        predictions: rows of `ia2.evaluation.Prediction`; those of the demo with `task` and `seed`.
    """
    methods, differences, cells = metrics["methods"], metrics["differences"], metrics.get("cells", [])
    title = metrics.get("title", f"IA2 run on {metrics['model']}")
    setting = f"Model {metrics['model']} · {metrics['n_train']} training examples · {metrics['n_test']} test rows"
    if cells:
        n_tasks, n_seeds = (len({cell[key] for cell in cells}) for key in ("task", "seed"))
        setting += f" in each cell (cells: {len(cells)}, tasks: {n_tasks}, seeds: {n_seeds})"
    sections = {
        "Verdict": _verdict(methods, differences),
        "Methods": _methods_table(methods),
        "Accuracy": figures.accuracy(methods, cells),
        "Calibration": figures.calibration(methods, predictions, bool(cells)),
        "Similarity to ICL by layer": figures.similarity(methods),
        "Differences": _differences_table(differences),
        "Where methods disagree": _disagreements(methods, predictions),
        "How to read this page": _notes(bool(cells)),
    }
    write_page(path, title, setting, sections)


# --- The verdict


def _verdict(methods: dict[str, Any], differences: dict[str, Any]) -> str:
    """About the first method that is compared."""
    subject = next(iter(differences), "").split(" - ")[0]
    claims = [_claim(pair, values) for pair, values in differences.items() if pair.split(" - ")[0] == subject]
    if not claims:
        claims = ["There is no pair of methods to compare here."]
    if has_cost := subject != "icl" and {subject, "icl"} <= methods.keys():
        claims.append(_cost(subject, methods[subject], methods["icl"]))
    first, *others = claims
    items = "".join(f"<li>{claim}</li>" for claim in others)
    tiles = _tiles(methods, subject if has_cost else "") if len(methods) > 1 else ""
    return f'<p class="lead">{first}</p>\n<ul>{items}</ul>\n{tiles}'


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
    """What the intervals of a minus b allow to say about accuracy and calibration error; nothing if they hold 0."""
    a, b = (f"<b>{name_of(name)}</b>" for name in pair.split(" - ", 1))
    accuracy, ece = difference["accuracy"], difference["ece"]
    none = "no difference in {} that this data can show ({})"
    if sign := side(accuracy):
        text = f"{a} is {PERCENT.size(accuracy, ' points')} {'above' if sign > 0 else 'below'} {b} in accuracy"
    else:
        text = f"Between {a} and {b} there is {none.format('accuracy', PERCENT.interval(accuracy, '+') + ' points')}"
    if sign := side(ece):
        verdict = "higher, which is worse" if sign > 0 else "lower, which is better"
        return f"{text}; the calibration error of {a} is {SCORE.size(ece)} {verdict}."
    return f"{text}; {none.format('calibration error', SCORE.interval(ece, '+'))}."


def _cost(name: str, method: dict[str, Any], icl: dict[str, Any]) -> str:
    own, other = (
        f"{WHOLE.number(m['tokens_per_query'])} tokens of prompt and {MILLISECONDS.number(m['seconds_per_query'])} ms"
        for m in (method, icl)
    )
    ratio = icl["tokens_per_query"] / method["tokens_per_query"]
    fewer = f": {ratio:.1f} times fewer tokens" if ratio >= 1.05 else ""
    once = f", after {WHOLE.number(method['training_seconds'])} s of training" if "training_seconds" in method else ""
    queries = method.get("break_even_queries")
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
        rows.append([f"{look(name).dot}{name_of(name)}<small>{look(name).what}</small>", *cells])
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
        rows.append([" minus ".join(name_of(name) for name in pair.split(" - ", 1)), *cells])
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


def _disagreements(methods: dict[str, Any], predictions: list[dict[str, Any]]) -> str:
    """A sample of the queries that methods answer differently, spread evenly over all of them."""
    seen: Counter[tuple[Any, ...]] = Counter()  # a query may be there more than once
    by_query: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for p in predictions:
        key = (p.get("task"), p.get("seed"), p["query"], p["response"])
        seen[p["variant"], key] += 1
        by_query.setdefault((*key, seen[p["variant"], key]), {})[p["variant"]] = p
    differing = [answers for answers in by_query.values() if len({p["answer"] for p in answers.values()}) > 1]
    if not differing:
        return ""
    n = min(N_DISAGREEMENTS, len(differing))
    rows = []
    for answers in (differing[i * len(differing) // n] for i in range(n)):
        p = next(iter(answers.values()))
        where = escape(f"{p['task']}, seed {p['seed']}") if "task" in p else ""
        cells = [_answer_cell(answers[name]) if name in answers else "" for name in methods]
        rows.append(
            [
                f"<q>{_clipped(p['query'], 240)}</q>{where and f'<small>{where}</small>'}",
                _clipped(p["response"], 80),
                *cells,
            ]
        )
    titles = ["Query", "Gold", *(name_of(name) for name in methods)]
    caption = "The query, its gold response, and each method's answer (✓ right, ✗ wrong) with its confidence below."
    summary = f"{n} of the {len(differing)} queries, of {len(by_query)}, that methods answer differently"
    return f"<details><summary>{summary}</summary>\n{table(caption, titles, rows)}</details>"


def _answer_cell(p: dict[str, Any]) -> str:
    mark, kind = ("✓", "right") if p["correct"] else ("✗", "wrong")
    text = _clipped(p["answer"], 80) or "(none)"
    return f'<span class="{kind}">{mark}</span> {text}<small>{p["confidence"]:.2f}</small>'


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


def _clipped(text: str, n: int) -> str:
    return escape(text if len(text) <= n else f"{text[: n - 1]}…")
