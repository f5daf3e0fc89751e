"""Whether the same heads tell ICL from a method in several runs: of other tasks, other seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ia2.errors import IA2Error
from ia2.statistics import Array

N_PERMUTATIONS = 1000


@dataclass(frozen=True)
class Recurring:
    """Of the tenth of heads of each run that tell ICL from a method best, how many are the same.

    Attributes:
        k: heads of each run.
        jaccard: |A ∩ B| / |A ∪ B|, mean over pairs of runs; 1 for the same heads.
        by_chance: the same where the heads of every run are permuted within their layers, mean over permutations.
        p: the share of permutations with as much or more, the runs as they are among them.
        heads: layer and number, from 0, of each head, with the number of runs that it is found in; most first.
    """

    k: int
    jaccard: float
    by_chance: float
    p: float
    heads: list[tuple[int, int, int]]


def recurring_heads(analyses: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By method, the heads that several runs have in common, by their AUROC on the rows that they were not found on.

    Args:
        analyses: by run, what `analyze` returns or analysis.json holds.

    Returns:
        For each method that at least two runs have: `runs`, which ones, and the attributes of `Recurring`.

    Raises:
        IA2Error: they are of models with other heads.
    """
    found: dict[str, dict[str, Array]] = {}
    for run, analysis in analyses.items():
        for method, of in analysis["units"]["heads"].items():
            found.setdefault(method, {})[run] = np.array(of["auroc"])
    shapes = {auroc_LH.shape for of in found.values() for auroc_LH in of.values()}
    if len(shapes) > 1:
        raise IA2Error(f"found layers and heads {sorted(shapes)}; expected runs of one model")
    several = {method: of for method, of in found.items() if len(of) > 1}
    return {method: {"runs": list(of), **vars(recurring(list(of.values())))} for method, of in several.items()}


def recurring(runs: Sequence[Array], seed: int = 0) -> Recurring:
    """See `Recurring`; AUROC of every head (L, H), of each of R runs."""
    auroc_RLH = np.stack(runs)
    R, L, H = auroc_RLH.shape
    k = math.ceil(L * H / 10)
    order_RU = np.argsort(-auroc_RLH.reshape(R, -1), axis=1, kind="stable")
    best_RLH = (np.argsort(order_RU, axis=1) < k).reshape(R, L, H)
    rng = np.random.default_rng(seed)
    observed = _jaccard(best_RLH)
    chance = np.array([_jaccard(rng.permuted(best_RLH, axis=2)) for _ in range(N_PERMUTATIONS)])
    n_LH = best_RLH.sum(0)
    order = sorted(zip(*np.nonzero(n_LH), strict=True), key=lambda head: -n_LH[head])
    return Recurring(
        k=k,
        jaccard=observed,
        by_chance=float(chance.mean()),
        p=float((1 + (chance >= observed - 1e-12).sum()) / (1 + N_PERMUTATIONS)),
        heads=[(int(layer), int(head), int(n_LH[layer, head])) for layer, head in order],
    )


def _jaccard(sets_RLH: NDArray[np.bool_]) -> float:
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in combinations(sets_RLH, 2)]))
