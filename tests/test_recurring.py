"""Heads that several runs have in common: planted ones are found, and what a layer alone explains is chance."""

from typing import Any

import numpy as np
import pytest

from ia2.analysis import recurring_heads
from ia2.analysis.recurring import recurring
from ia2.errors import IA2Error
from ia2.statistics import Array

L, H, R = 4, 10, 6


def runs(seed: int, heads: tuple[tuple[int, int], ...] = (), layer: int | None = None) -> list[Array]:
    """Noise; with these heads, or all of this layer, above it in every run."""
    auroc_RLH = 0.5 + 0.1 * np.random.default_rng(seed).random((R, L, H))
    for at, head in heads:
        auroc_RLH[:, at, head] += 0.2
    if layer is not None:
        auroc_RLH[:, layer] += 0.2
    return list(auroc_RLH)


def analysis(auroc_LH: Array, method: str = "sft") -> dict[str, Any]:
    return {"units": {"heads": {method: {"auroc": auroc_LH.tolist()}}}}


def test_planted_heads_are_those_of_every_run() -> None:
    planted = ((0, 3), (2, 7), (3, 0), (3, 9))
    found = recurring(runs(0, planted))
    assert (found.k, found.jaccard) == (4, 1)
    assert found.heads == [(*head, R) for head in planted]
    assert found.by_chance < 0.2
    assert found.p == pytest.approx(1 / 1001)


def test_a_part_in_common_is_what_sets_say() -> None:
    many = runs(0, ((1, 1), (2, 2)))
    found = recurring(many)
    sets = [{divmod(int(u), H) for u in np.argsort(-of.ravel())[:4]} for of in many]
    pairs = [len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[:i]]
    assert found.jaccard == pytest.approx(sum(pairs) / len(pairs))
    counts = {head: sum(head in of for of in sets) for head in set().union(*sets)}
    assert {(at, head): n for at, head, n in found.heads} == counts
    assert [n for *_, n in found.heads] == sorted((n for *_, n in found.heads), reverse=True)


@pytest.mark.parametrize("layer", [None, 3], ids=["noise", "a layer"])
def test_noise_and_a_layer_that_all_heads_share_are_chance(layer: int | None) -> None:
    found = [recurring(runs(seed, layer=layer), seed) for seed in range(20)]
    assert sum(of.p < 0.05 for of in found) <= 3
    assert np.mean([of.jaccard for of in found]) == pytest.approx(np.mean([of.by_chance for of in found]), abs=0.03)
    if layer is not None:
        assert {head[0] for of in found for head in of.heads} == {layer}


def test_a_method_of_one_run_is_left_out_and_other_models_are_refused() -> None:
    many = runs(0)
    found = recurring_heads({"a": analysis(many[0]), "b": analysis(many[1]), "c": analysis(many[2], "ia2")})
    assert list(found) == ["sft"]
    assert found["sft"] == {"runs": ["a", "b"], **vars(recurring(many[:2]))}
    with pytest.raises(IA2Error, match=r"found layers and heads \[\(3, 10\), \(4, 10\)\]; expected runs of one model"):
        recurring_heads({"a": analysis(many[0]), "b": analysis(many[1][1:])})
