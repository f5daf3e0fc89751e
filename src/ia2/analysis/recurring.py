"""Whether the same heads or neurons tell ICL from a method in several runs: of other tasks, other seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ia2.analysis.units import N_TOP
from ia2.errors import IA2Error

N_PERMUTATIONS = 1000


@dataclass(frozen=True)
class Recurring:
    """Of the first k units of each run, those that tell ICL from a method best, how many are the same.

    Attributes:
        k: a tenth of the units, rounded up, at most ten.
        jaccard: |A ∩ B| / |A ∪ B|, mean over pairs of runs; 1 for the same units.
        by_chance: the same where the units of every run are permuted within their layers, mean over permutations.
        p: the share of permutations with as much or more, the runs as they are among them.
        units: decoder layer and number, from 0, of each unit, with the number of runs that it is found in; most first.
    """

    k: int
    jaccard: float
    by_chance: float
    p: float
    units: list[tuple[int, int, int]]


def recurring_units(analyses: Mapping[str, Mapping[str, Any]], kind: str = "heads") -> dict[str, Any]:
    """By method, the units that several runs have in common, in the order that `Units` has them.

    Args:
        analyses: by run, what `analyze` returns or analysis.json holds.
        kind: `heads` or `neurons`.

    Returns:
        For each method that at least two runs have: `runs`, which ones, and the attributes of `Recurring`.

    Raises:
        IA2Error: they are of models with other units.
    """
    found: dict[str, dict[str, Any]] = {}
    for run, analysis in analyses.items():
        for method, of in analysis["units"].get(kind, {}).items():
            found.setdefault(method, {})[run] = of
    several = {method: of for method, of in found.items() if len(of) > 1}
    return {method: {"runs": list(of), **vars(_recurring(list(of.values())))} for method, of in several.items()}


def _recurring(runs: Sequence[Mapping[str, Any]]) -> Recurring:
    """Of what `describe` says of each run's units."""
    shapes = {(len(of["by_layer"]), of["n"] // len(of["by_layer"])) for of in runs}
    if len(shapes) > 1:
        raise IA2Error(f"found layers and units a layer {sorted(shapes)}; expected runs of one model")
    L, H = next(iter(shapes))
    layers = [of["layer"] for of in runs[0]["by_layer"]]
    k = min(N_TOP, math.ceil(L * H / 10))
    first_RLH = np.zeros((len(runs), L, H), bool)
    for first_LH, of in zip(first_RLH, runs, strict=True):
        for unit in of["top"][:k]:
            first_LH[layers.index(unit["layer"]), unit["unit"]] = True
    rng, observed = np.random.default_rng(0), _jaccard(first_RLH)
    chance = np.array([_jaccard(rng.permuted(first_RLH, axis=2)) for _ in range(N_PERMUTATIONS)])
    n_LH = first_RLH.sum(0)
    order = sorted(zip(*np.nonzero(n_LH), strict=True), key=lambda place: -n_LH[place])
    return Recurring(
        k=k,
        jaccard=observed,
        by_chance=float(chance.mean()),
        p=float((1 + (chance >= observed - 1e-12).sum()) / (1 + N_PERMUTATIONS)),
        units=[(layers[layer], int(unit), int(n_LH[layer, unit])) for layer, unit in order],
    )


def _jaccard(sets_RLH: NDArray[np.bool_]) -> float:
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in combinations(sets_RLH, 2)]))
