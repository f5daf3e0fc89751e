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
    lm: LanguageModel,
    task: Task,
    test: Sequence[Example],
    snapshots: Mapping[str, Mapping[int, Path]],
    zero: Variant,
    icl: Variant,
) -> dict[str, list[dict[str, Any]]]:
    """Every snapshot of some trainings on the test rows, as points in order of steps.

    Args:
        lm: the base, without an adapter.
        task: how prompts look.
        test: labelled rows, at least 16.
        snapshots: by training, adapter folders by the number of updates before them; all are loaded at once.
        zero, icl: what distances are measured to; they are read once for all.

    Returns:
        By training, of each `step`: `accuracy`, `ece`, `nll` and `brier` with their intervals, and `distances` by site
        and reference, see there.
    """
    folders = {_name(of, number): path for of, own in snapshots.items() for number, path in own.items()}
    variants = [Variant(name, adapter=name) for name in folders]
    with loaded_adapters(lm, folders):
        predictions = by_variant(evaluate(lm, task, test, variants, icl))
        found = distances(read_activations(lm, task, test, [zero, icl, *variants], SITES))

    def point(name: str, number: int) -> dict[str, Any]:
        by_site = {site: {of: found[site][of][name] for of in (icl.name, zero.name)} for site in SITES}
        return {"step": number, **measured(predictions[name]), "distances": by_site}

    return {of: [point(_name(of, number), number) for number in own] for of, own in snapshots.items()}


def _name(training: str, number: int) -> str:
    return f"{training}-step-{number}"
