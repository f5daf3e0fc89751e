"""Patching heads and neurons: what must change does, what must not does not, and nothing is left behind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GENERATED, LABELS, example_rows, random_model, reasoned_rows

from ia2.adapters import loaded_adapters, new_adapter, save_adapter
from ia2.analysis import Patch, patch_curves, patched, patched_scores
from ia2.analysis.activations import read_rows
from ia2.analysis.patching import Scores, Unit, patch_sizes
from ia2.capture import Site, read
from ia2.contexts import Contexts
from ia2.data import Example
from ia2.evaluation import Variant, evaluate
from ia2.metrics import ece
from ia2.models import LanguageModel, wrap_model
from ia2.prompt import build_prompt
from ia2.task import Task
from ia2.world.tokenizer import build_tokenizer

ALL = [(layer, head) for layer in range(3) for head in range(4)]
ZERO, TWIN = Variant("zero-shot"), Variant("twin")
ROWS = {LABELS: example_rows(10), GENERATED: reasoned_rows(10)}


def scores_of(
    lm: LanguageModel,
    task: Task,
    rows: list[Example],
    variant: Variant,
    source: Variant,
    sets: list[list[Unit]],
    site: Site = "head_out",
) -> Scores:
    return patched_scores(
        lm, task, rows, source, [Patch(variant, site, units) for units in sets], {"head_out": 4, "neurons": 48}
    )


def n_hooks(lm: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.base.modules())


@pytest.mark.parametrize("task", [LABELS, GENERATED, Task(("0", "1", "0 gloomy"))])
def test_without_patches_scores_are_those_of_the_evaluation(any_lm: LanguageModel, task: Task) -> None:
    rows = ROWS.get(task, ROWS[LABELS])
    icl = Variant("icl", Contexts(tuple(rows[:3])))
    found = scores_of(any_lm, task, rows[3:], icl, icl, [[]])
    expected = evaluate(any_lm, task, rows[3:], [icl], icl)
    assert found.nll[0] == pytest.approx([p.nll for p in expected], rel=1e-4)
    assert found.correct[0].tolist() == [p.correct if task.labels else p.greedy_correct for p in expected]
    if task.labels:
        assert found.confidence[0] == pytest.approx([p.confidence for p in expected], rel=1e-4)


def test_heads_of_the_same_model_change_nothing(any_lm: LanguageModel) -> None:
    found = scores_of(any_lm, LABELS, ROWS[LABELS], ZERO, TWIN, [[], ALL, ALL[2:9]])
    assert found.nll[1] == pytest.approx(found.nll[0], rel=1e-4)
    assert found.nll[2] == pytest.approx(found.nll[0], rel=1e-4)
    assert (found.correct == found.correct[0]).all()


def test_all_heads_of_icl_make_it_icl(lm: LanguageModel) -> None:
    """One-token responses, rotary positions: the residual stream there holds nothing but the token and the heads."""
    rows = ROWS[LABELS]
    icl = Variant("icl", Contexts(tuple(rows[:3])))
    nll = scores_of(lm, LABELS, rows[3:], ZERO, icl, [[], ALL[:11], ALL]).nll
    (taught,) = scores_of(lm, LABELS, rows[3:], icl, icl, [[]]).nll
    assert nll[2] == pytest.approx(taught, rel=1e-3, abs=1e-4)
    assert np.abs(nll[0] - taught).max() > 0.01
    assert np.abs(nll[1] - taught).max() > 1e-3  # one head less is not enough


def test_the_planted_head_moves_the_output_and_the_others_do_not(tmp_path: Path) -> None:
    changed = random_model("qwen3")
    with torch.no_grad():
        changed.model.layers[-1].self_attn.q_proj.weight[16:32].neg_()  # of the second head of four
    changed.save_pretrained(tmp_path / "changed")
    lm = wrap_model(random_model("qwen3"), build_tokenizer())
    with loaded_adapters(lm, {"changed": tmp_path / "changed"}):
        variant, others = Variant("changed", adapter="changed"), [head for head in ALL if head != (2, 1)]
        nll = scores_of(lm, LABELS, ROWS[LABELS], variant, ZERO, [[], [(2, 1)], others]).nll
        base = scores_of(lm, LABELS, ROWS[LABELS], ZERO, ZERO, [[]])
        order = Patch(variant, "head_out", [(2, 1), *others])
        [curve] = patch_curves(lm, LABELS, ROWS[LABELS], ZERO, [order], {"head_out": 4})
    assert np.abs(nll[0] - base.nll[0]).max() > 1e-3
    assert nll[1] == pytest.approx(base.nll[0], rel=1e-4)
    assert nll[2] == pytest.approx(nll[0], rel=1e-4)
    assert [point["k"] for point in curve] == [0, 1, 2, 4, 8, 12]
    first = [point["nll"]["value"] for point in curve]
    assert first[1:] == pytest.approx([base.nll.mean()] * 5, rel=1e-4)
    assert curve[1]["ece"]["value"] == pytest.approx(ece(base.confidence[0], base.correct[0]), rel=1e-4)
    assert first[0] == curve[0]["random_nll"]["value"] == pytest.approx(nll[0].mean())
    assert abs(curve[1]["random_nll"]["value"] - first[0]) < abs(first[1] - first[0])


def test_a_model_of_one_head_has_a_curve_without_random_ones(lm: LanguageModel) -> None:
    [curve] = patch_curves(lm, LABELS, ROWS[LABELS], TWIN, [Patch(ZERO, "head_out", [(0, 0)])], {"head_out": 1})
    assert [point["k"] for point in curve] == [0, 1]


def test_the_planted_neuron_moves_the_output_and_the_others_do_not(tmp_path: Path) -> None:
    changed = random_model("qwen3")
    with torch.no_grad():
        changed.model.layers[-1].mlp.up_proj.weight[7].mul_(-30)
    changed.save_pretrained(tmp_path / "changed")
    lm = wrap_model(random_model("qwen3"), build_tokenizer())
    with loaded_adapters(lm, {"changed": tmp_path / "changed"}):
        variant, others = Variant("changed", adapter="changed"), [(2, unit) for unit in range(48) if unit != 7]
        nll = scores_of(lm, LABELS, ROWS[LABELS], variant, ZERO, [[], [(2, 7)], others], "neurons").nll
        (base,) = scores_of(lm, LABELS, ROWS[LABELS], ZERO, ZERO, [[]]).nll
    assert np.abs(nll[0] - base).max() > 1e-3
    assert nll[1] == pytest.approx(base, rel=1e-4)
    assert nll[2] == pytest.approx(nll[0], rel=1e-4)


def test_random_units_are_the_mean_of_three_draws(lm: LanguageModel) -> None:
    icl = Variant("icl", Contexts(tuple(ROWS[LABELS][:3])))
    rows, n_units = ROWS[LABELS][3:], {"head_out": 4}
    [curve] = patch_curves(lm, LABELS, rows, icl, [Patch(ZERO, "head_out", ALL)], n_units)
    rng, draws = np.random.default_rng(0), {}
    for k in (0, 1, 2, 4, 8, 12):
        draws[k] = [[ALL[i] for i in rng.permutation(12)[:k]] for _ in range(3)]
    for point in curve:
        own = scores_of(lm, LABELS, rows, ZERO, icl, draws[point["k"]])
        eces = [ece(*of) for of in zip(own.confidence, own.correct, strict=True)]
        assert point["random_ece"]["value"] == pytest.approx(np.mean(eces), rel=1e-4)
        assert point["random_nll"]["value"] == pytest.approx(own.nll.mean(), rel=1e-4)
    assert len({point["random_ece"]["value"] for point in curve}) > 2


def test_sizes_of_curves() -> None:
    assert patch_sizes(16) == [0, 1, 2, 4, 8, 16]
    assert patch_sizes(12) == [0, 1, 2, 4, 8, 12]
    assert patch_sizes(1536) == [0, 1, 4, 16, 64, 256, 1024, 1536]


def test_only_the_aligned_positions_and_the_chosen_heads_are_patched(any_lm: LanguageModel) -> None:
    rows = [any_lm.encoder.encode(build_prompt(GENERATED, (), e.query, e.label)) for e in ROWS[GENERATED][:3]]
    batch = any_lm.encoder.collate(rows, "query")
    every = any_lm.encoder.collate(rows)
    with torch.no_grad():
        before = read(any_lm.base, any_lm.anatomy, batch, {"head_out"})["head_out"]
        values = torch.randn_like(read(any_lm.base, any_lm.anatomy, every, {"head_out"})["head_out"])
        with patched(any_lm.anatomy, "head_out", [(1, 2)], 4, every, values):
            after = read(any_lm.base, any_lm.anatomy, batch, {"head_out"}, {0, 1})["head_out"]
    at_response = every.aligned_mask[batch.aligned_mask]
    changed = (after != before[:, :2]).unflatten(-1, (4, -1)).any(-1)
    assert changed[at_response][:, 1, 2].all()
    changed[:, 1, 2] &= ~at_response
    assert not changed.any()


def test_hooks_are_removed_also_after_an_error(lm: LanguageModel) -> None:
    before = n_hooks(lm)
    batch = lm.encoder.collate([lm.encoder.encode(build_prompt(LABELS, (), "soup", "0"))])

    def fail() -> None:
        with patched(lm.anatomy, "head_out", ALL, 4, batch, torch.zeros(1, 3, 32)):
            assert n_hooks(lm) == before + 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert n_hooks(lm) == before


def test_positions_behind_virtual_tokens(lm: LanguageModel, tmp_path: Path) -> None:
    with new_adapter(lm, "prompt-tuning") as model:
        save_adapter(model, tmp_path / "adapter", {})
    with loaded_adapters(lm, {"mine": tmp_path / "adapter"}):
        mine = Variant("mine", adapter="mine")
        nll = scores_of(lm, LABELS, ROWS[LABELS], mine, mine, [[], ALL]).nll
        assert nll[1] == pytest.approx(nll[0], rel=1e-4)
        shapes = {acts.shape for acts in read_rows(lm, LABELS, ROWS[LABELS], mine, {"head_out"})["head_out"]}
    assert shapes == {(1, 3, 32)}
