"""Whether the same heads or neurons tell ICL from a method in several runs: of other seeds, of other tasks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ia2.analysis.units import N_TOP
from ia2.errors import IA2Error
from ia2.statistics import Array, Interval, percentiles, resamples

N_PERMUTATIONS = 1000
MIN_PAIRS = 3  # fewer bound no interval
SAME, OTHER = "same task, other seed", "other task"
Task = tuple[str, str]  # of a run: its task, and its seed


def recurring_units(
    analyses: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, Task], kind: str = "heads"
) -> dict[str, Any]:
    """By method, the units that several runs have in common, in the order that `Units` has them.

    Args:
        analyses: by run, what `analyze` returns or analysis.json holds.
        tasks: task and seed of each run.
        kind: `heads` or `neurons`.

    Returns:
        For each method that at least two runs have: `runs`, which ones; `k`, how many units of each are looked at, a
        tenth of them, rounded up, at most ten; `units`, the decoder layer and number, from 0, of each of these, with
        the number of runs that it is found in, most first; and `pairs`, of two runs of the same task and another seed,
        and of two of other tasks, where there are any:

        - `jaccard`: |A ∩ B| / |A ∪ B| of the units of two runs, mean over pairs; 1 for the same units. Its interval is
          over runs, and all of [0, 1] with fewer than three pairs;
        - `by_chance`: the same where the units of every run are permuted within their layers, mean over permutations;
        - `p`: the share of permutations with as much or more, the runs as they are among them.

    Raises:
        IA2Error: they are of models with other units.
    """
    found: dict[str, dict[str, Any]] = {}
    for run, analysis in analyses.items():
        for method, of in analysis["units"].get(kind, {}).items():
            found.setdefault(method, {})[run] = of
    several = {method: of for method, of in found.items() if len(of) > 1}
    return {
        method: {"runs": list(of), **_recurring(list(of.values()), [tasks[run] for run in of])}
        for method, of in several.items()
    }


def _recurring(runs: Sequence[Mapping[str, Any]], tasks: Sequence[Task]) -> dict[str, Any]:
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
    rng = np.random.default_rng(0)
    chance_BRR = np.stack([_jaccard(rng.permuted(first_RLH, axis=2)) for _ in range(N_PERMUTATIONS)])
    names, seeds = (np.array(of) for of in zip(*tasks, strict=True))
    same_RR = names[:, None] == names
    pairs = {SAME: same_RR & (seeds[:, None] != seeds), OTHER: ~same_RR}
    n_LH = first_RLH.sum(0)
    order = sorted(zip(*np.nonzero(n_LH), strict=True), key=lambda place: -n_LH[place])
    return {
        "k": k,
        "pairs": {name: _common(_jaccard(first_RLH), chance_BRR, of) for name, of in pairs.items() if of.any()},
        "units": [(layers[layer], int(unit), int(n_LH[layer, unit])) for layer, unit in order],
    }


def _common(jaccard_RR: Array, chance_BRR: Array, pairs_RR: NDArray[np.bool_]) -> dict[str, Any]:
    """What some pairs of runs have in common; draws of runs without a pair are left out of the interval."""
    observed, chance_B = jaccard_RR[pairs_RR].mean(), chance_BRR[:, pairs_RR].mean(1)
    interval = Interval(float(observed), 0.0, 1.0)
    if (n_pairs := int(pairs_RR.sum()) // 2) >= MIN_PAIRS:
        counts_BR = np.concatenate(list(resamples(len(pairs_RR), np.random.default_rng(0))))
        n_BP = (counts_BR[:, :, None] * counts_BR[:, None])[:, pairs_RR]
        drawn = n_BP.sum(1) > 0
        interval = percentiles(observed, n_BP[drawn] @ jaccard_RR[pairs_RR] / n_BP[drawn].sum(1))
    return {
        "n_pairs": n_pairs,
        "jaccard": asdict(interval),
        "by_chance": float(chance_B.mean()),
        "p": float((1 + (chance_B >= observed - 1e-12).sum()) / (1 + N_PERMUTATIONS)),
    }


def _jaccard(sets_RLH: NDArray[np.bool_]) -> Array:
    """Of each two runs, (R, R)."""
    sets_RU = sets_RLH.reshape(len(sets_RLH), -1).astype(float)
    both_RR, n_R = sets_RU @ sets_RU.T, sets_RU.sum(1)
    return np.asarray(both_RR / (n_R[:, None] + n_R - both_RR))
