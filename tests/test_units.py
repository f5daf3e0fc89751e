"""Heads and neurons that tell ICL from a method: planted ones are found, and none where there are none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LABELS, example_rows, random_model

from ia2.adapters import loaded_adapters
from ia2.analysis import Activations, describe, find_units, read_activations
from ia2.analysis.units import Q, halves, shared, standardised
from ia2.capture import Site
from ia2.errors import IA2Error
from ia2.evaluation import Variant
from ia2.models import wrap_model
from ia2.statistics import bootstrap
from ia2.world.tokenizer import build_tokenizer


def noise(
    planted: dict[tuple[int, int], float], n: int = 80, layers: int = 3, units: int = 8, width: int = 4
) -> Activations:
    """Two variants that are noise around the same rows; planted units of ICL are moved along a direction."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, layers, units, width))
    icl, sft = (rows + 0.5 * rng.normal(size=rows.shape) for _ in range(2))
    for (layer, unit), size in planted.items():
        icl[:, layer, unit, 0] += size
    means = {name: {"head_out": torch.tensor(of).flatten(2)} for name, of in (("icl", icl), ("sft", sft))}
    return Activations({"head_out": (0, 2, 5)}, means, {}, {})


@pytest.mark.parametrize("width", [1, 4])
def test_planted_units_are_found_and_no_others(width: int) -> None:
    units = find_units(noise({(1, 3): 3.0, (2, 0): 2.0}, width=width), "head_out", 8, "sft")
    assert {units.places[u] for u in np.flatnonzero(units.q < Q)} == {(2, 3), (5, 0)}
    assert [units.places[u] for u in units.order[:2]] == [(2, 3), (5, 0)]
    found = describe(units)
    assert (found["n"], found["n_rows"], found["n_survive"]) == (24, 40, 2)
    assert found["n_by_chance"] < 0.5
    best = found["top"][0]
    assert (best["layer"], best["unit"]) == (2, 3)
    assert 0.88 < best["auroc"]["low"] <= best["auroc"]["value"] <= best["auroc"]["high"] <= 1
    assert best["difference"]["low"] > 1
    assert [of["n_survive"] for of in found["by_layer"]] == [0, 1, 1]


def test_without_a_planted_unit_none_survives() -> None:
    acts = noise({}, layers=10, units=100, width=1)
    units = find_units(Activations({"head_out": tuple(range(10))}, acts.means, {}, {}), "head_out", 100, "sft")
    assert (units.p < 0.05).sum() > 20  # though many seem to
    assert (units.q < Q).sum() == 0
    assert units.auroc(slice(None))["value"] == pytest.approx(0.5, abs=0.02)
    of_each = [units.auroc([u]) for u in range(1000)]
    assert 0.9 < np.mean([of["low"] <= 0.5 <= of["high"] for of in of_each]) < 0.98


def test_a_direction_is_measured_on_other_rows_than_it_was_found_on() -> None:
    first, second = halves(41)
    assert (len(first), len(second)) == (20, 21)
    assert sorted([*first, *second]) == list(range(41))
    units = find_units(noise({}, width=200, units=4), "head_out", 4, "sft")  # on its own rows any direction would tell
    assert max(units.auroc([u])["value"] for u in range(12)) < 0.7


@pytest.mark.parametrize("site", ["head_out", "neurons"])
def test_the_unit_that_was_changed_in_a_model_is_found(site: Site, tmp_path: Path) -> None:
    """In the last layer, the query of one head, or the row of one neuron, is turned round."""
    changed = random_model("qwen3")
    layer = changed.model.layers[-1]
    with torch.no_grad():
        if site == "head_out":
            layer.self_attn.q_proj.weight[16:32].neg_()  # of the second head of four
        else:
            layer.mlp.up_proj.weight[5].neg_()
    changed.save_pretrained(tmp_path / "changed")
    lm, rows = wrap_model(random_model("qwen3"), build_tokenizer()), example_rows(60)
    with loaded_adapters(lm, {"changed": tmp_path / "changed"}):
        variants = [Variant("icl"), Variant("changed", adapter="changed")]
        acts = read_activations(lm, LABELS, rows, variants, [site], ("icl",))
    units = find_units(acts, site, 4 if site == "head_out" else 48, "changed")
    expected = (2, 1) if site == "head_out" else (2, 5)
    assert units.places[units.order[0]] == expected
    assert [units.places[u] for u in np.flatnonzero(units.q < Q)] == [expected]


def test_auroc_and_difference_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(1)
    units = find_units(noise({(0, 0): 1.0}), "head_out", 8, "sft")
    a, b = units.scores_icl[:, 0], units.scores_method[:, 0]
    naive = np.mean([[float(x > y) + 0.5 * float(x == y) for y in b] for x in a])
    found = units.auroc([0])
    assert found["value"] == pytest.approx(naive)
    draws = [rng.integers(len(a), size=len(a)) for _ in range(2000)]
    above = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    deviation = np.std([above[drawn][:, drawn].mean() for drawn in draws])
    assert (found["high"] - naive) / 1.96 == pytest.approx(deviation, rel=0.1)
    means = units.auroc([0, 5])["value"], (units.auroc([0])["value"] + units.auroc([5])["value"]) / 2
    assert means[0] == pytest.approx(means[1])
    drawn = rng.integers(len(a), size=len(a))
    counts = np.bincount(drawn, minlength=len(a)).astype(float)
    pooled = np.sqrt((a[drawn].var(ddof=1) + b[drawn].var(ddof=1)) / 2)
    assert standardised(a, b, counts=counts) == pytest.approx((a[drawn].mean() - b[drawn].mean()) / pooled)
    assert bootstrap(standardised, a, a).value == 0
    assert standardised(np.ones(5), np.ones(5)) == 0


def test_units_that_two_methods_share_are_counted_against_chance() -> None:
    acts = noise({(1, 3): 3.0, (2, 0): 2.0})
    units = find_units(acts, "head_out", 8, "sft")
    assert shared(units, units)["k"] == shared(units, units)["shared"] == 2
    other = replace(units, order=units.order[::-1])
    none = {"value": 0.0, "low": 0.0, "high": pytest.approx(0.658, abs=0.001)}
    assert shared(units, other) == {"k": 2, "shared": 0, "share": none, "expected": 4 / 24, "p": 1.0}
    half = replace(units, order=[units.order[0], *units.order[2:], units.order[1]])
    assert shared(units, half)["p"] == pytest.approx(1 - 22 * 21 / (24 * 23))  # that at least one is the same


def test_features_must_be_whole_units() -> None:
    with pytest.raises(IA2Error, match="found 32 features a layer; expected a multiple of 5"):
        find_units(noise({}), "head_out", 5, "sft")
