"""Which heads and neurons tell ICL from another method: found on half of the rows, measured on the other.

A head is what it adds to the input of its output projection (the site `head_out`), a neuron is one feature of the site
`neurons`; of both, the mean over a row's response positions.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, hypergeom, rankdata, wilcoxon

from ia2.analysis.activations import Activations
from ia2.capture import Site
from ia2.errors import IA2Error
from ia2.statistics import Array, Interval, Z, bootstrap, wilson

Q = 0.05
N_EXCHANGES = 20
N_TOP = 10


@dataclass(frozen=True)
class Units:
    """How well each of U units tells ICL from a method by its activation along one direction.

    The direction is that of the mean difference on half of the rows. All else but `order` is of the other half.

    Attributes:
        places: decoder layer and number within it, from 0, of each unit.
        order: the units, those first whose standardised difference on the first half is largest.
        scores_icl, scores_method: of the rows of the second half, along the direction (N, U).
        p: one-sided, that the scores of ICL are not above those of the method (Wilcoxon's signed-rank test, which
            is over all ways to exchange the two within rows; by its normal approximation).
        q: the same, corrected for the number of units (Benjamini and Hochberg 1995): of the units below q, a share of
            q is there by chance.
        n_by_chance: units with `q` below 0.05 where ICL and the method are exchanged at random within rows, mean over
            20 such exchanges.
    """

    places: list[tuple[int, int]]
    order: list[int]
    scores_icl: Array
    scores_method: Array
    p: Array
    q: Array
    n_by_chance: float

    @cached_property
    def auroc_by_row(self) -> Array:
        """Of each row, how the AUROC of each unit depends on it; (N, U). Their mean is the AUROC.

        The AUROC is how often a row of ICL scores above a row of the method, half of that where they tie. Its standard
        error is that of these means (DeLong et al. 1988, with the two of a row drawn together).
        """
        n = len(self.scores_icl)
        ranks = rankdata(np.concatenate([self.scores_icl, self.scores_method]), axis=0)
        icl_NU = (ranks[:n] - rankdata(self.scores_icl, axis=0)) / n
        method_NU = 1 - (ranks[n:] - rankdata(self.scores_method, axis=0)) / n
        return np.asarray(icl_NU + method_NU - icl_NU.mean(0))

    def auroc(self, chosen: Any) -> dict[str, float]:
        """The mean AUROC of some units, with its interval over rows; in [0, 1]."""
        rows_N = self.auroc_by_row[:, chosen].mean(1)
        value, half = rows_N.mean(), Z * rows_N.std(ddof=1) / len(rows_N) ** 0.5
        return asdict(Interval(float(value), float(max(0, value - half)), float(min(1, value + half))))


def shared(a: Units, b: Units) -> dict[str, Any]:
    """How many of the first k units of two methods are the same, k a tenth of them, and how many would be by chance.

    `share` is that of k, with Wilson's interval over units.
    """
    k = max(1, len(a.order) // 10)
    both = len(set(a.order[:k]) & set(b.order[:k]))
    low, high = wilson(np.array(both), np.array(k))
    return {
        "k": k,
        "shared": both,
        "share": asdict(Interval(both / k, float(low), float(high))),
        "expected": k * k / len(a.order),
        "p": float(hypergeom.sf(both - 1, len(a.order), k, k)),
    }


def halves(n: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows that units are found on, and those that they are measured on."""
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def find_units(acts: Activations, site: Site, n_units: int, method: str, reference: str = "icl") -> Units:
    """Look at every unit of a site.

    Args:
        acts: of the method and the reference.
        site: `head_out`, `neurons`, or another one, whose features then are the units.
        n_units: of a layer, each with an equal share of the features side by side.
        method: a variant.
        reference: and what it is told from.
    """
    a_NUW, b_NUW = (_split(acts.means[name][site].double().numpy(), n_units) for name in (reference, method))
    first, second = halves(len(a_NUW))
    difference_NUW = a_NUW - b_NUW
    direction_UW = difference_NUW[first].mean(0)
    scores = [np.einsum("nuw,uw->nu", of_NUW, direction_UW) for of_NUW in (a_NUW, b_NUW)]
    rng, n_by_chance = np.random.default_rng(0), []
    for _ in range(N_EXCHANGES):
        sign_N11 = rng.choice([-1.0, 1.0], (len(a_NUW), 1, 1))
        n_by_chance.append((_p_values(sign_N11 * difference_NUW, first, second)[1] < Q).sum())
    p, q = _p_values(difference_NUW, first, second)
    return Units(
        places=[(layer, unit) for layer in acts.layers[site] for unit in range(n_units)],
        order=np.argsort(-standardised(*(of_NU[first] for of_NU in scores)), kind="stable").tolist(),
        scores_icl=scores[0][second],
        scores_method=scores[1][second],
        p=p,
        q=q,
        n_by_chance=float(np.mean(n_by_chance)),
    )


def _split(acts_NLD: Array, n_units: int) -> Array:
    N, L, D = acts_NLD.shape
    if D % n_units:
        raise IA2Error(f"found {D} features a layer; expected a multiple of {n_units} units")
    return acts_NLD.reshape(N, L * n_units, D // n_units)


def _p_values(difference_NUW: Array, first: Any, second: Any) -> tuple[Array, Array]:
    """Of the second half's differences along the first half's mean, each unit's p, and that corrected."""
    along_NU = np.einsum("nuw,uw->nu", difference_NUW[second], difference_NUW[first].mean(0))
    p = np.asarray(wilcoxon(along_NU, alternative="greater", method="asymptotic", zero_method="zsplit", axis=0).pvalue)
    return p, np.asarray(false_discovery_control(p))


def standardised(a: Array, b: Array, *, counts: Array | None = None) -> Array:
    """Difference of means over the root of the mean variance (Cohen's d); 0 where nothing varies.

    Of one unit (N,), each row counted as often as `counts` (..., N) says, or of many (N, U), each row once.
    """
    weights = np.ones(len(a)) if counts is None else counts
    n = weights.sum(-1)
    mean_a, mean_b = weights @ a / n, weights @ b / n
    variance = (weights @ a**2 / n - mean_a**2 + weights @ b**2 / n - mean_b**2) / 2 * n / (n - 1)
    gap = np.asarray(mean_a - mean_b)
    return np.asarray(np.divide(gap, np.sqrt(np.abs(variance)), out=np.zeros_like(gap), where=variance > 0))


def describe(units: Units) -> dict[str, Any]:
    """Counts, and the ten units that the first half puts first, with what the second half says of them.

    `auroc` and `difference` (standardised) have intervals over the rows of the second half.
    """
    top = []
    for u in units.order[:N_TOP]:
        a_N, b_N = units.scores_icl[:, u], units.scores_method[:, u]
        layer, unit = units.places[u]
        told = {"auroc": units.auroc([u]), "difference": asdict(bootstrap(standardised, a_N, b_N))}
        top.append({"layer": layer, "unit": unit, **told, "p": float(units.p[u]), "q": float(units.q[u])})
    at = np.array([layer for layer, _ in units.places])
    return {
        "n": len(units.places),
        "n_rows": len(units.scores_icl),
        "n_survive": int((units.q < Q).sum()),
        "n_by_chance": units.n_by_chance,
        "by_layer": [
            {
                "layer": layer,
                "n": int((at == layer).sum()),
                "n_survive": int((units.q[at == layer] < Q).sum()),
                "mean_auroc": units.auroc(at == layer),
            }
            for layer in np.unique(at).tolist()
        ],
        "top": top,
    }
