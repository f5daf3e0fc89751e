"""How far what a method computes is from ICL and from zero-shot: per site and layer, with intervals over rows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ia2.analysis.activations import Activations
from ia2.capture import Site
from ia2.errors import IA2Error
from ia2.progress import step
from ia2.statistics import Array, Columns, Interval, Statistic, bootstrap, intervals, mean, percentiles, resamples

N_POSITIONS = 32
MIN_ROWS, CKA_ROWS = 16, 256  # of fewer rows, some resamples hold no four different ones
SITES: tuple[Site, ...] = ("attn_out", "head_out", "mlp_out", "hidden")


def distances(acts: Activations) -> dict[str, Any]:
    """Of every variant to every reference, by site, reference, variant and metric.

    Each metric is a list over the layers of the site (`layers`), a value with its 95% bootstrap interval over rows:
    `cosine`, `l2` and `relative_l2` (see `Activations.gaps`), `cka` (see `cka`; of the first 256 rows, as its cost
    grows with their square). `mean` has those of the mean over layers, without `cka`. `by_position` is the cosine
    similarity, mean over layers, at each of the first 32 response positions that at least 16 rows have.

    Raises:
        IA2Error: fewer than 16 rows.
    """
    found: dict[str, Any] = {site: {"layers": list(layers)} for site, layers in acts.layers.items()}
    n_rows = len(next(iter(acts.gaps.values()))["cosine"])
    if n_rows < MIN_ROWS:
        raise IA2Error(f"found {n_rows} test rows; expected at least {MIN_ROWS}, as intervals are over rows")
    for (site, reference, name), gap in acts.gaps.items():
        found[site].setdefault(reference, {})[name] = {
            **{metric: _by_layer(mean, [[of_N] for of_N in of_NL.T]) for metric, of_NL in gap.items()},
            "cka": [],
            "by_position": _by_position(acts.cosines[site, reference, name]),
            "mean": {metric: _by_layer(mean, [[of_NL.mean(1)]])[0] for metric, of_NL in gap.items()},
        }
    with step("kernel alignment", sum(map(len, acts.layers.values()))) as advance:
        for site, layers in acts.layers.items():
            pairs = [(reference, name) for at, reference, name in acts.gaps if at == site]
            for i in range(len(layers)):
                grams = {name: gram(of[site][:CKA_ROWS, i].double().numpy()) for name, of in acts.means.items()}
                for (reference, name), interval in cka_intervals(grams, pairs).items():
                    found[site][reference][name]["cka"].append(asdict(interval))
                advance()
    return found


def _by_layer(statistic: Statistic, columns: Sequence[Columns]) -> list[dict[str, float]]:
    found = intervals({str(i): (statistic, of_layer) for i, of_layer in enumerate(columns)})
    return [asdict(interval) for interval in found.values()]


def _by_position(cosines: Sequence[Array]) -> list[dict[str, float]]:
    found = []
    for r in range(N_POSITIONS):
        at_r = np.array([cosine_R[r] for cosine_R in cosines if len(cosine_R) > r])
        if len(at_r) < MIN_ROWS:
            break
        found.append(asdict(bootstrap(mean, at_r)))
    return found


def gram(rows_ND: Array) -> Array:
    """Inner products of different rows, less their mean, (N, N); 0 of a row with itself."""
    centred_ND = rows_ND - rows_ND.mean(0)
    found = centred_ND @ centred_ND.T
    np.fill_diagonal(found, 0)
    return np.asarray(found)


def cka(gram_a: Array, gram_b: Array, *, counts: Array | None = None) -> Array:
    """Linear centred kernel alignment of two sets of activations on the same rows, of at least four rows.

    1 where the two are alike up to a rotation and a factor (Kornblith et al. 2019, arXiv 1905.00414, section 3), and in
    the mean 0 where they have nothing to do with each other, as the estimate of the Hilbert-Schmidt independence
    criterion is the unbiased one (Song et al. 2012, eq. 5). 0 where one of them is the same on all rows.

    Args:
        gram_a, gram_b: see `gram`.
        counts: how often each row was drawn (..., N); once if None. Pairs of one row with itself do not count.
    """
    counts = np.ones(len(gram_a)) if counts is None else counts
    return _cka(*(hsic(*pair, counts) for pair in ((gram_a, gram_b), (gram_a, gram_a), (gram_b, gram_b))))


def cka_intervals(grams: Mapping[str, Array], pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Interval]:
    """`cka` of pairs of several sets on the same rows, as `bootstrap` has it; what is of one set is computed once."""
    n = len(next(iter(grams.values())))
    draws: dict[tuple[str, str], list[Array]] = {pair: [] for pair in pairs}
    for counts in (np.ones((1, n)), *resamples(n, np.random.default_rng(0))):
        own = {name: hsic(of, of, counts) for name, of in grams.items()}
        for a, b in pairs:
            draws[a, b].append(_cka(hsic(grams[a], grams[b], counts), own[a], own[b]))
    return {pair: percentiles(first[0], np.concatenate(others)) for pair, (first, *others) in draws.items()}


def _cka(between: Array, own_a: Array, own_b: Array) -> Array:
    scale = own_a * own_b
    return np.divide(between, np.sqrt(np.abs(scale)), out=np.zeros_like(between), where=scale > 0)


def hsic(a: Array, b: Array, counts: Array) -> Array:
    """Means over different rows i, j, k, l, each as often as drawn, of a_ij b_ij - 2 a_ij b_ik + a_ij b_kl. (...)"""
    squares = counts * counts
    n, n2, n3, n4 = counts.sum(-1), squares.sum(-1), (squares * counts).sum(-1), (squares * squares).sum(-1)
    a_i, b_i, ab_i, ab2_i = counts @ a, counts @ b, counts @ (a * b), squares @ (a * b)
    pairs = (counts * ab_i).sum(-1)
    triples = (counts * (a_i * b_i - ab2_i)).sum(-1)
    shared = (squares * (a_i * b_i - ab2_i)).sum(-1)  # of pairs ij and kl that have one row in common
    both = (squares * ab2_i).sum(-1)
    quadruples = (counts * a_i).sum(-1) * (counts * b_i).sum(-1) - 4 * shared - 2 * both
    n_pairs, n_triples = n**2 - n2, n**3 - 3 * n * n2 + 2 * n3
    n_quadruples = n**4 - 6 * n**2 * n2 + 8 * n * n3 + 3 * n2**2 - 6 * n4
    return np.asarray(pairs / n_pairs - 2 * triples / n_triples + quadruples / n_quadruples)
