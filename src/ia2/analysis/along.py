"""The way of a training: how far each of its snapshots is from ICL, and how good."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ia2.adapters import loaded_adapters
from ia2.analysis.activations import read_activations
from ia2.analysis.distances import distances
from ia2.capture import Site
from ia2.comparison import by_variant
from ia2.data import Example
from ia2.evaluation import Variant, evaluate
from ia2.models import LanguageModel
from ia2.summary import measured
from ia2.task import Task

SITES: tuple[Site, ...] = ("attn_out", "mlp_out", "hidden")


def along_training(
    lm: LanguageModel, task: Task, test: Sequence[Example], snapshots: Mapping[int, Path], zero: Variant, icl: Variant
) -> list[dict[str, Any]]:
    """Every snapshot of a training on the test rows, as points in order of steps.

    Args:
        lm: the base, without an adapter.
        task: how prompts look.
        test: labelled rows, at least 16.
        snapshots: adapter folders by the number of updates before them; all are loaded at once.
        zero, icl: what distances are measured to.

    Returns:
        Of each `step`: `accuracy`, `ece`, `nll` and `brier` with their intervals, and `distances` by site and
        reference, see there.
    """
    names = {number: f"step-{number}" for number in snapshots}
    variants = [Variant(name, adapter=name) for name in names.values()]
    with loaded_adapters(lm, {names[number]: folder for number, folder in snapshots.items()}):
        predictions = by_variant(evaluate(lm, task, test, variants, icl))
        found = distances(read_activations(lm, task, test, [zero, icl, *variants], SITES))
    return [
        {
            "step": number,
            **measured(predictions[name]),
            "distances": {site: {of: found[site][of][name] for of in (icl.name, zero.name)} for site in SITES},
        }
        for number, name in names.items()
    ]
