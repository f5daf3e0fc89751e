"""The page of a sweep: every method over the number of examples, differences over all cells, and what failed."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ia2.metrics import break_even
from ia2.report.curves import risk_coverage
from ia2.report.disagreements import disagreements
from ia2.report.figures import calibration, dots, framed, over_n
from ia2.report.frame import dotted, name_of, table, write_page
from ia2.report.grid_page import grid_sections
from ia2.report.numbers import MILLISECONDS, PERCENT, SCORE, WHOLE, p_value, side
from ia2.report.page import ACCURACY, BRIER, ECE, NLL, PAIRED, Column, difference_cell, share_of_tokens
from ia2.report.record import find_analysis, record

Rows = Sequence[dict[str, Any]]
SETTING = ("n", "model", "adapter", "ood")
NOTES = (
    "A value is the mean over cells (tasks and seeds); its interval holds 95% of resamplings of cells and their rows, "
    "or with one cell, of its rows.",
    "A p-value is of a permutation test over cells, and at least 2/2ⁿ with n of them, before it is corrected: a few "
    "show no difference, however large. With one cell, it is of a test over its rows, and says nothing of other seeds.",
    "P-values are corrected for the differences of one setting, not for there being several settings.",
    "Where methods differ between tasks, those of all tasks are the ones that every task has.",
)


def write_sweep_report(
    path: Path,
    methods: Rows,
    differences: Rows,
    costs: Rows,
    samples: Iterable[tuple[int, Rows]],
    failed: Mapping[str, str],
    n_cells: int,
    overall: Rows = (),
) -> None:
    """Write the page.

    Args:
        path: of the HTML file, in the folder of the sweep: what it holds of runs and of an analysis is shown too.
        methods, differences: see `ia2.overview.Overview`.
        costs: of each `method` and `n`: `tokens_per_query`, `seconds_per_query` and `training_seconds`, NaN without.
        samples: predictions with `task` and `seed` of the cells of each N, the largest first.
        failed: why each cell failed that did, in whole or in part, by its name.
        n_cells: how many were wanted.
        overall: see `ia2.overview.over_all_n`.
    """
    found = {key: ", ".join(dict.fromkeys(str(row[key]) for row in methods)) for key in ("model", "adapter", "n")}
    setting = (
        f"N = {found['n']} · adapters: {found['adapter']} · cells: {n_cells}, failed in whole or in part: {len(failed)}"
    )
    analysis = find_analysis(path.parent)
    sections = {
        "Verdict": _overall(overall, found["n"]) + _verdict(methods, differences, costs),
        "Accuracy": _panels(methods, ACCURACY),
        "Calibration": _panels(methods, ECE),
        "Results": _results(methods),
        "Differences": _differences(methods, differences),
        "Cost": _costs(costs),
        **_closer(methods, samples),
        **(grid_sections(analysis) if analysis else {}),
        "What failed": _failures(failed),
        "How to read this page": f"<ul>{''.join(f'<li>{note}</li>' for note in NOTES)}</ul>",
        "How it was made": record(path.parent),
    }
    write_page(path, f"IA2 sweep on {found['model']}", setting, sections)


def _parts(rows: Rows, keys: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """The rows that agree in the keys, in order of appearance."""
    for values in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        yield values, [row for row in rows if tuple(row[key] for key in keys) == values]


def _where(row: Mapping[str, Any], methods: Rows, keys: Sequence[str] = SETTING) -> str:
    """Of what setting a row is: N, and what is not the same everywhere."""
    several = [key for key in keys if key == "n" or len({other[key] for other in methods}) > 1]
    texts = {"n": f"N = {row['n']}", "ood": "out of distribution" if row["ood"] else "in distribution"}
    return " · ".join(str(texts.get(key, row[key])) for key in several)


def _overall(found: Rows, sizes: str) -> str:
    """The verdict in one sentence, of all N together, on the most accurate trained method."""
    if not found:
        return ""
    accuracy, p = found[0]["accuracy"], found[0]["p_holm"]
    name = f"<b>{name_of(found[0]['method'])}</b>"
    text = f"no difference of {name} and <b>SFT</b> in accuracy that this data can show"
    if p < 0.05 and (way := side(accuracy)):
        text = f"{name} is {'more' if way > 0 else 'less'} accurate than <b>SFT</b>"
    text = f"{text}: {PERCENT.interval(accuracy, '+')} points, {p_value(p)}"
    return f'<p class="lead">Over N = {sizes}: {text}.</p>\n'


def _verdict(methods: Rows, differences: Rows, costs: Rows) -> str:
    claims, cost_of = [], {(row["method"], row["n"]): row for row in costs}
    for setting, pairs in _parts(differences, SETTING):
        own = next(rows for values, rows in _parts(methods, SETTING) if values == setting)
        overall = {row["method"]: row for row in own if row["task"] == own[0]["task"]}
        best = max({pair["method"]: None for pair in pairs}, key=lambda name: overall[name]["accuracy"]["value"])
        against = [_against(pair) for pair in pairs if pair["method"] == best]
        if (own_cost := cost_of.get((best, pairs[0]["n"]))) and (icl := cost_of.get(("icl", pairs[0]["n"]))):
            against.append(share_of_tokens(own_cost, icl))
        where, value = escape(_where(pairs[0], methods)), PERCENT.interval(overall[best]["accuracy"])
        claim = f"of what is trained, <b>{name_of(best)}</b> is the most accurate ({value}%)"
        claims.append((pairs[0]["n"], f"{where}: {claim}; {'; '.join(against)}."))
    if len(claims) > 1:
        return f"<ul>{''.join(f'<li data-n={n}>{claim}</li>' for n, claim in claims)}</ul>"
    return f'<p class="lead">{claims[0][1] if claims else "There is no pair of methods to compare here."}</p>'


def _against(pair: dict[str, Any]) -> str:
    accuracy = pair["accuracy"]
    says = "a difference" if accuracy["p_holm"] < 0.05 else "no difference that this data can show"
    points = f"{PERCENT.interval(accuracy, '+')} points"
    return f"against <b>{name_of(pair['minus'])}</b> {points}, {p_value(accuracy['p_holm'])}: {says}"


def _panels(methods: Rows, column: Column) -> str:
    """A panel of all tasks, if there are several, and one a task; for each model and adapter."""
    n_sizes = len({row["n"] for row in methods})
    bounds = [row[column.key][end] for row in methods for end in ("low", "high")]
    limits = [min(bounds) - 0.03, max(bounds) + 0.03]
    title = column.title.removesuffix(", %")
    panels = []
    for (*_, task), rows in _parts(methods, ("model", "adapter", "ood", "task")):
        if n_sizes > 1:
            figure = over_n(rows, column.key, column.form)
            figure.update_yaxes(range=limits)
        else:
            figure = dots([("", {row["method"]: row for row in rows})], column.key, column.form)
            figure.update_xaxes(range=limits)
        where = _where(rows[0], methods, ("model", "adapter", "ood"))
        small = " · ".join(part for part in (where, _counted(rows)) if part)
        caption = f"<b>{escape(task)}</b> <small>{escape(small)}</small>"
        panels.append(framed(figure, caption, f"{title} of each method on {task}{where and f' ({where})'}"))
    over = " over the number of examples N" if n_sizes > 1 else ""
    text = f"<p>{title}{over}, with 95% intervals; {column.better} is better.</p>"
    names = dict.fromkeys(row["method"] for row in methods) if n_sizes > 1 else ()
    key = "".join(f"<li>{dotted(name)}</li>" for name in names)
    return f'{text}\n{key and f"<ul class=key>{key}</ul>"}\n<div class="wide panels">{"".join(panels)}</div>'


def _counted(rows: Rows) -> str:
    """Over how many cells the rows are means."""
    low, high = (end(row["n_cells"] for row in rows) for end in (min, max))
    if high == 1:
        return "one cell"
    return f"mean over {low if low == high else f'{low} to {high}'} cells"


def _results(methods: Rows) -> str:
    names = list(dict.fromkeys(row["method"] for row in methods))
    rows = []
    for (*_, task), own in _parts(methods, (*SETTING, "task")):
        by_name = {row["method"]: row for row in own}
        best = max(PERCENT.number(row["accuracy"]["value"]) for row in own)
        cells = [_value(by_name[name], best) if name in by_name else "" for name in names]
        rows.append([f"{escape(task)}{_small(own[0], escape(_where(own[0], methods)))}", *cells])
    caption = (
        "Accuracy in percent, its 95% interval, and the expected calibration error (ECE, 0 to 1, lower is better); "
        "the highest accuracy of a row is bold."
    )
    return table(caption, ["Task", *map(dotted, names)], rows)


def _value(row: dict[str, Any], best: str) -> str:
    text = PERCENT.number(row["accuracy"]["value"])
    ece = f"<small>ECE {SCORE.number(row['ece']['value'])}</small>"
    return (
        f"{f'<strong>{text}</strong>' if text == best else text}<small>{PERCENT.bounds(row['accuracy'])}</small>{ece}"
    )


def _differences(methods: Rows, differences: Rows) -> str:
    columns = (ACCURACY, ECE, NLL, BRIER)
    rows = []
    for pair in differences:
        title = f"{dotted(pair['method'])} minus {dotted(pair['minus'])}"
        where = _small(pair, f"{escape(_where(pair, methods))} · {_counted([pair])}")
        rows.append([f"{title}{where}", *(difference_cell(pair[column.key], column) for column in columns)])
    titles = [column.title.replace("%", "points") for column in columns]
    return table(PAIRED, ["Methods", *titles], rows) if rows else ""


def _small(row: Mapping[str, Any], html: str) -> str:
    """A note below the title of a table's row, which says which N the row is of."""
    return f'<small data-n="{row["n"]}">{html}</small>'


def _closer(methods: Rows, samples: Iterable[tuple[int, Rows]]) -> dict[str, str]:
    """Calibration and risk at each N, of which the largest is shown at first; and its rows where methods disagree."""
    found, rows = {"Reliability": "", "Risk and coverage": ""}, dict[str, str]()
    for n, sample in samples:
        names = list(dict.fromkeys(p["variant"] for p in sample))
        own = {row["method"]: row for row in reversed(methods) if row["n"] == n and row["method"] in names}
        shown = {name: own[name] for name in names}
        rows = rows or {"Where methods disagree": _at(n, disagreements(shown, sample, ()))}
        found["Reliability"] += _at(n, calibration(shown, sample, True), hidden=bool(found["Reliability"]))
        found["Risk and coverage"] += _at(n, risk_coverage(sample, names), hidden=bool(found["Risk and coverage"]))
    return {**found, **rows}


def _at(n: int, html: str, hidden: bool = False) -> str:
    """A part of a section that is shown where its N is chosen, or none and it is not hidden."""
    return html and f'<div data-n="{n}"{" hidden" * hidden}>\n<h3>N = {n}</h3>\n{html}\n</div>\n'


def _costs(costs: Rows) -> str:
    """A row a method, a column a number of examples."""
    names, sizes = (list(dict.fromkeys(row[key] for row in costs)) for key in ("method", "n"))
    found = {(row["method"], row["n"]): row for row in costs}
    rows = [
        [dotted(name), *(_cost(found[name, n], found["icl", n]) if (name, n) in found else "" for n in sizes)]
        for name in names
    ]
    caption = (
        "Tokens of the prompt of one query, time of one, and of a training; and after how many queries that has taken "
        "less time than ICL would have. Means over cells."
    )
    return table(caption, ["Method", *(f'<span data-n="{n}">N = {n}</span>' for n in sizes)], rows) if rows else ""


def _cost(of: dict[str, Any], icl: dict[str, Any]) -> str:
    text = (
        f"{WHOLE.number(of['tokens_per_query'])} tokens<small>{MILLISECONDS.number(of['seconds_per_query'])} ms</small>"
    )
    if math.isnan(training := of["training_seconds"]):
        return text
    queries = break_even(training, icl["seconds_per_query"], of["seconds_per_query"])
    pays = f"<small>pays after {queries:,} queries</small>" if queries is not None else ""
    return f"{text}<small>{WHOLE.number(training)} s of training</small>{pays}"


def _failures(failed: Mapping[str, str]) -> str:
    rows = [[escape(name), f"<span>{escape(reason)}</span>"] for name, reason in failed.items()]
    caption = "Cells that failed, or lack a test, and why. The same command again runs these alone."
    return f'<div class="reasons">{table(caption, ["Cell", "Reason"], rows)}</div>' if rows else ""
