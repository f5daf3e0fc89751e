"""Patching heads: what must change does, what must not does not, and nothing is left behind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GENERATED, LABELS, example_rows, random_model, reasoned_rows

from ia2.adapters import loaded_adapters, new_adapter, save_adapter
from ia2.analysis import patch_curve, patched, patched_scores
from ia2.analysis.activations import read_rows
from ia2.capture import read
from ia2.contexts import Contexts
from ia2.evaluation import Variant, evaluate
from ia2.models import LanguageModel, wrap_model
from ia2.prompt import build_prompt
from ia2.task import Task
from ia2.world.tokenizer import build_tokenizer

ALL = [(layer, head) for layer in range(3) for head in range(4)]
ZERO, TWIN = Variant("zero-shot"), Variant("twin")
ROWS = {LABELS: example_rows(10), GENERATED: reasoned_rows(10)}


def n_hooks(lm: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.base.modules())


@pytest.mark.parametrize("task", [LABELS, GENERATED, Task(("0", "1", "0 gloomy"))])
def test_without_patches_scores_are_those_of_the_evaluation(any_lm: LanguageModel, task: Task) -> None:
    rows = ROWS.get(task, ROWS[LABELS])
    icl = Variant("icl", Contexts(tuple(rows[:3])))
    (correct,), (nll,) = patched_scores(any_lm, task, rows[3:], icl, icl, [[]], 4)
    expected = evaluate(any_lm, task, rows[3:], [icl], icl)
    assert nll == pytest.approx([p.nll for p in expected], rel=1e-4)
    assert correct.tolist() == [p.correct if task.labels else p.greedy_correct for p in expected]


def test_heads_of_the_same_model_change_nothing(any_lm: LanguageModel) -> None:
    correct, nll = patched_scores(any_lm, LABELS, ROWS[LABELS], ZERO, TWIN, [[], ALL, ALL[2:9]], 4)
    assert nll[1] == pytest.approx(nll[0], rel=1e-4)
    assert nll[2] == pytest.approx(nll[0], rel=1e-4)
    assert (correct == correct[0]).all()


def test_all_heads_of_icl_make_it_icl(lm: LanguageModel) -> None:
    """One-token responses, rotary positions: the residual stream there holds nothing but the token and the heads."""
    rows = ROWS[LABELS]
    icl = Variant("icl", Contexts(tuple(rows[:3])))
    _, nll = patched_scores(lm, LABELS, rows[3:], ZERO, icl, [[], ALL[:11], ALL], 4)
    _, (taught,) = patched_scores(lm, LABELS, rows[3:], icl, icl, [[]], 4)
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
        _, nll = patched_scores(lm, LABELS, ROWS[LABELS], variant, ZERO, [[], [(2, 1)], others], 4)
        _, (base,) = patched_scores(lm, LABELS, ROWS[LABELS], ZERO, ZERO, [[]], 4)
        curve = patch_curve(lm, LABELS, ROWS[LABELS], variant, ZERO, [(2, 1), *others], 4)
    assert np.abs(nll[0] - base).max() > 1e-3
    assert nll[1] == pytest.approx(base, rel=1e-4)
    assert nll[2] == pytest.approx(nll[0], rel=1e-4)
    assert [point["k"] for point in curve] == [0, 1, 2, 4, 8, 12]
    first = [point["nll"]["value"] for point in curve]
    assert first[1:] == pytest.approx([base.mean()] * 5, rel=1e-4)
    assert first[0] == curve[0]["random_nll"]["value"] == pytest.approx(nll[0].mean())
    assert abs(curve[1]["random_nll"]["value"] - first[0]) < abs(first[1] - first[0])


def test_a_model_of_one_head_has_a_curve_without_random_ones(lm: LanguageModel) -> None:
    curve = patch_curve(lm, LABELS, ROWS[LABELS], ZERO, TWIN, [(0, 0)], 1)
    assert [point["k"] for point in curve] == [0, 1]


def test_only_the_aligned_positions_and_the_chosen_heads_are_patched(any_lm: LanguageModel) -> None:
    rows = [any_lm.encoder.encode(build_prompt(GENERATED, (), e.query, e.label)) for e in ROWS[GENERATED][:3]]
    batch = any_lm.encoder.collate(rows, "query")
    every = any_lm.encoder.collate(rows)
    with torch.no_grad():
        before = read(any_lm.base, any_lm.anatomy, batch, {"head_out"})["head_out"]
        values = torch.randn_like(read(any_lm.base, any_lm.anatomy, every, {"head_out"})["head_out"])
        with patched(any_lm.anatomy, [(1, 2)], 4, every, values):
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
        with patched(lm.anatomy, ALL, 4, batch, torch.zeros(1, 3, 32)):
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
        _, nll = patched_scores(lm, LABELS, ROWS[LABELS], mine, mine, [[], ALL], 4)
        assert nll[1] == pytest.approx(nll[0], rel=1e-4)
        shapes = {acts.shape for acts in read_rows(lm, LABELS, ROWS[LABELS], mine, {"head_out"})["head_out"]}
    assert shapes == {(1, 3, 32)}
