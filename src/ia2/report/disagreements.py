"""The rows that methods answer differently, to be searched, with what each of them says and what ICL is shown."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from ia2.report.frame import dotted, table

SEARCH = "Search these rows "
N_ROWS = 200
N_LABELS = 3  # whose probabilities are shown, the most probable ones
N_CONTEXTS, CONTEXT_LENGTH = 40, 8000

Row = dict[str, Any]


def disagreements(methods: dict[str, Any], predictions: Sequence[Row], cells: Sequence[dict[str, Any]]) -> str:
    """A sample of the queries that methods answer differently, spread evenly over all of them.

    Args:
        methods: as in `metrics.json`.
        predictions: see `ia2.report.page.write_report`.
        cells: each with `context`, what ICL sees before the first of its test queries.
    """
    found = _by_query(predictions)
    differing = [answers for answers in found if len({p["answer"] for p in answers.values()}) > 1]
    if not differing:
        return ""
    n = min(N_ROWS, len(differing))
    rows = [_row(differing[i * len(differing) // n], list(methods)) for i in range(n)]
    titles = ["Query", "Gold", *(dotted(name) for name in methods)]
    caption = (
        "The query, which is all of the prompt but for ICL, and its gold response; each method's answer (✓ right, ✗ "
        "wrong) with its confidence, and what it gives to each label."
    )
    summary = f"{n} of the {len(differing)} queries, of {len(found)}, that methods answer differently"
    search = f'<p class="search"><label>{SEARCH}<input type="search"></label><output aria-live="polite"></output></p>'
    return f'<div class="searched"><p>{summary}.</p>\n{search}\n{table(caption, titles, rows)}</div>{_contexts(cells)}'


def _by_query(predictions: Sequence[Row]) -> list[dict[str, Row]]:
    """For each query what each method says to it; a query may be there more than once."""
    seen: Counter[tuple[Any, ...]] = Counter()
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for p in predictions:
        key = (p.get("task"), p.get("seed"), p["query"], p["response"])
        seen[p["variant"], key] += 1
        found.setdefault((*key, seen[p["variant"], key]), {})[p["variant"]] = p
    return list(found.values())


def _row(answers: dict[str, Row], methods: Sequence[str]) -> list[str]:
    p = next(iter(answers.values()))
    where = f"<small>{escape(_name(p))}</small>" if "task" in p else ""
    cells = [_answer(answers[name]) if name in answers else "" for name in methods]
    return [f"<q>{_clipped(p['query'], 600)}</q>{where}", _clipped(p["response"], 80), *cells]


def _answer(p: Row) -> str:
    mark, kind = ("✓", "right") if p["correct"] else ("✗", "wrong")
    text = _clipped(p["answer"], 80) or "(none)"
    best = sorted((p.get("p_labels") or {}).items(), key=lambda of: -of[1])[:N_LABELS]
    labels = "".join(f"<small>{_clipped(label, 20)}: {share:.2f}</small>" for label, share in best)
    sure = labels or f"<small>{p['confidence']:.2f}</small>"
    return f'<span class="{kind}">{mark}</span> {text}{sure}'


def _contexts(cells: Sequence[dict[str, Any]]) -> str:
    """What stands before the query in ICL."""
    shown = [cell for cell in cells if cell.get("context")][:N_CONTEXTS]
    found = ""
    for cell in shown:
        where = f" of {escape(_name(cell))}" if "task" in cell else ""
        text = _clipped(cell["context"], CONTEXT_LENGTH)
        title = f"What ICL sees before the first query{where}"
        found += f'<details><summary>{title}</summary><pre tabindex="0">{text}</pre></details>'
    return found


def _name(of: dict[str, Any]) -> str:
    return f"{of['task']}, seed {of['seed']}"


def _clipped(text: str, n: int) -> str:
    return escape(text if len(text) <= n else f"{text[: n - 1]}…")
