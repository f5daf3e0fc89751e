"""Does an adapter still read its context: its answers with the demos in the prompt after all."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ia2.data import Example
from ia2.evaluation import Variant, evaluate
from ia2.models import LanguageModel
from ia2.summary import COMPARED, difference, summarise
from ia2.task import Task

DEMOS = "+demos"


def reads_context(
    lm: LanguageModel, task: Task, examples: Sequence[Example], adapters: Sequence[Variant], icl: Variant
) -> dict[str, Any]:
    """Metrics of ICL, and of each adapter with and without ICL's demos in its prompt (`+demos`), with intervals.

    `differences` are paired on the same rows: what the demos add to the adapter, and what the adapter adds to ICL.
    """
    shown = [replace(icl, name=f"{of.name}{DEMOS}", adapter=of.adapter) for of in adapters]
    rows = evaluate(lm, task, examples, [icl, *adapters, *shown], icl)
    of = {variant.name: [p for p in rows if p.variant == variant.name] for variant in (icl, *adapters, *shown)}
    pairs = [(f"{a.name}{DEMOS}", b) for a in adapters for b in (a.name, icl.name)]
    summaries = {name: summarise(predictions) for name, predictions in of.items()}
    return {
        "methods": {name: {metric: summary[metric] for metric in COMPARED} for name, summary in summaries.items()},
        "differences": {f"{a} - {b}": difference(of[a], of[b]) for a, b in pairs},
    }
