"""Heads that several runs have in common: planted ones are found, and what a layer alone explains is chance."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ia2.analysis import recurring_units
from ia2.errors import IA2Error

L, H, R = 4, 10, 6
LAYERS = (1, 3, 5, 7)  # of a model that has no heads in every second layer
Heads = list[tuple[int, int]]


def runs(seed: int, heads: Heads | None = None, layer: int | None = None) -> list[Heads]:
    """Of each run its ten first heads: these, then random ones, all of one layer if given."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(R):
        places = [(at, head) for at in LAYERS for head in range(H) if layer in (None, at)]
        others = [places[i] for i in rng.permutation(len(places)) if places[i] not in (heads or [])]
        found.append([*(heads or []), *others][:10])
    return found


def analysis(top: Heads, method: str = "sft", n_layers: int = L) -> dict[str, Any]:
    by_layer = [{"layer": at} for at in LAYERS[:n_layers]]
    of = {"n": n_layers * H, "by_layer": by_layer, "top": [{"layer": at, "unit": head} for at, head in top]}
    return {"units": {"heads": {method: of}}}


def found_in(many: list[Heads], tasks: list[tuple[str, str]]) -> Any:
    names = [str(i) for i in range(len(many))]
    return recurring_units(dict(zip(names, map(analysis, many), strict=True)), dict(zip(names, tasks, strict=True)))[
        "sft"
    ]


def recurring(many: list[Heads]) -> Any:
    """Each run of another task."""
    found = found_in(many, [(str(i), "0") for i in range(len(many))])
    assert list(found["pairs"]) == ["other task"]
    return SimpleNamespace(**found, **found["pairs"]["other task"])


def test_planted_heads_are_those_of_every_run() -> None:
    planted = [(1, 3), (5, 7), (7, 0), (7, 9)]
    found = recurring(runs(0, planted))
    assert (found.k, found.n_pairs, found.jaccard) == (4, 15, {"value": 1, "low": 1, "high": 1})
    assert found.units == [(*head, R) for head in planted]
    assert found.by_chance < 0.2
    assert found.p == pytest.approx(1 / 1001)


def test_a_part_in_common_is_what_sets_say() -> None:
    many = [*runs(0, [(1, 1), (3, 2)])[:4], *runs(1)[:2]]
    found = recurring(many)
    sets = [set(of[:4]) for of in many]
    pairs = [len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[:i]]
    assert found.jaccard["value"] == pytest.approx(sum(pairs) / len(pairs))
    assert found.jaccard["low"] < found.jaccard["value"] < found.jaccard["high"]
    two = found_in(many[:2], [("a", "0"), ("b", "0")])["pairs"]["other task"]["jaccard"]
    assert (two["low"], two["high"]) == (0, 1)
    counts = {head: sum(head in of for of in sets) for head in set().union(*sets)}
    assert {(at, head): n for at, head, n in found.units} == counts
    assert [n for *_, n in found.units] == sorted((n for *_, n in found.units), reverse=True)


@pytest.mark.parametrize("layer", [None, 7], ids=["noise", "a layer"])
def test_noise_and_a_layer_that_all_heads_share_are_chance(layer: int | None) -> None:
    found = [recurring(runs(seed, layer=layer)) for seed in range(20)]
    assert sum(of.p < 0.05 for of in found) <= 3
    assert np.mean([of.jaccard["value"] for of in found]) == pytest.approx(
        np.mean([of.by_chance for of in found]), abs=0.03
    )
    if layer is not None:
        assert {head[0] for of in found for head in of.units} == {layer}


def test_a_head_of_a_task_is_one_of_its_seeds_and_not_of_other_tasks() -> None:
    planted = {task: [(layer, head) for layer in LAYERS] for head, task in enumerate("abc")}
    tasks = [(task, str(seed)) for task in planted for seed in range(3)]
    pairs = found_in([planted[task] for task, _ in tasks], tasks)["pairs"]
    same, other = pairs["same task, other seed"], pairs["other task"]
    assert (same["n_pairs"], other["n_pairs"]) == (9, 27)
    assert same["jaccard"] == {"value": 1, "low": 1, "high": 1}
    assert other["jaccard"] == {"value": 0, "low": 0, "high": 0}
    assert (same["p"], other["p"]) == (pytest.approx(1 / 1001), 1)
    again = found_in(
        [planted[task] for task, _ in tasks], [(task, "0") for task, _ in tasks]
    )  # rows of one seed, more N
    assert list(again["pairs"]) == ["other task"]


def test_a_method_of_one_run_is_left_out_and_other_models_are_refused() -> None:
    many, tasks = runs(0), {name: (name, "0") for name in "abc"}
    found = recurring_units({"a": analysis(many[0]), "b": analysis(many[1]), "c": analysis(many[2], "ia2")}, tasks)
    assert list(found) == ["sft"]
    assert found["sft"]["runs"] == ["a", "b"]
    assert recurring_units({"a": analysis(many[0]), "b": analysis(many[1])}, tasks, "neurons") == {}
    neurons = {
        name: {"units": {"neurons": analysis(of)["units"]["heads"]}} for name, of in zip("ab", many, strict=False)
    }
    assert recurring_units(neurons, tasks, "neurons") == found
    with pytest.raises(
        IA2Error, match=r"found layers and units a layer \[\(3, 10\), \(4, 10\)\]; expected runs of one model"
    ):
        recurring_units({"a": analysis(many[0]), "b": analysis([], n_layers=3)}, tasks)
