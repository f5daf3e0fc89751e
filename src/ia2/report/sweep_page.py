"""The page of a sweep: every method over the number of examples, differences over all cells, and what failed."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ia2.report.figures import dots, framed, look, over_n
from ia2.report.frame import name_of, table, write_page
from ia2.report.numbers import PERCENT, SCORE, p_value
from ia2.report.page import ACCURACY, BRIER, ECE, NLL, PAIRED, Column, difference_cell

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


def write_sweep_report(path: Path, methods: Rows, differences: Rows, failed: Mapping[str, str], n_cells: int) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        methods, differences: see `ia2.overview.Overview`.
        failed: why each cell failed that did, in whole or in part, by its name.
        n_cells: how many were wanted.
    """
    found = {key: ", ".join(dict.fromkeys(str(row[key]) for row in methods)) for key in ("model", "adapter", "n")}
    setting = (
        f"N = {found['n']} · adapters: {found['adapter']} · cells: {n_cells}, failed in whole or in part: {len(failed)}"
    )
    sections = {
        "Verdict": _verdict(methods, differences),
        "Accuracy": _panels(methods, ACCURACY),
        "Calibration": _panels(methods, ECE),
        "Results": _results(methods),
        "Differences": _differences(methods, differences),
        "What failed": _failures(failed),
        "How to read this page": f"<ul>{''.join(f'<li>{note}</li>' for note in NOTES)}</ul>",
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


def _verdict(methods: Rows, differences: Rows) -> str:
    claims = []
    for setting, pairs in _parts(differences, SETTING):
        own = next(rows for values, rows in _parts(methods, SETTING) if values == setting)
        overall = {row["method"]: row for row in own if row["task"] == own[0]["task"]}
        best = max({pair["method"]: None for pair in pairs}, key=lambda name: overall[name]["accuracy"]["value"])
        against = [_against(pair) for pair in pairs if pair["method"] == best]
        where, value = escape(_where(pairs[0], methods)), PERCENT.interval(overall[best]["accuracy"])
        claim = f"of what is trained, <b>{name_of(best)}</b> is the most accurate ({value}%)"
        claims.append(f"{where}: {claim}; {'; '.join(against)}.")
    if len(claims) > 1:
        return f"<ul>{''.join(f'<li>{claim}</li>' for claim in claims)}</ul>"
    return f'<p class="lead">{claims[0] if claims else "There is no pair of methods to compare here."}</p>'


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
    key = "".join(f"<li>{look(name).dot}{name_of(name)}</li>" for name in names)
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
        rows.append([f"{escape(task)}<small>{escape(_where(own[0], methods))}</small>", *cells])
    caption = (
        "Accuracy in percent, its 95% interval, and the expected calibration error (ECE, 0 to 1, lower is better); "
        "the highest accuracy of a row is bold."
    )
    return table(caption, ["Task", *map(name_of, names)], rows)


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
        title = f"{name_of(pair['method'])} minus {name_of(pair['minus'])}"
        where = f"<small>{escape(_where(pair, methods))} · {_counted([pair])}</small>"
        rows.append([f"{title}{where}", *(difference_cell(pair[column.key], column) for column in columns)])
    titles = [column.title.replace("%", "points") for column in columns]
    return table(PAIRED, ["Methods", *titles], rows) if rows else ""


def _failures(failed: Mapping[str, str]) -> str:
    rows = [[escape(name), f"<span>{escape(reason)}</span>"] for name, reason in failed.items()]
    caption = "Cells that failed, or lack a test, and why. The same command again runs these alone."
    return f'<div class="reasons">{table(caption, ["Cell", "Reason"], rows)}</div>' if rows else ""
