"""The trainer: what changes nothing, what is restored, what is repeated bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GENERATED, LABELS, example_rows, reasoned_rows, teacher_prompts
from torch import Tensor

from ia2.adapters import new_adapter
from ia2.bank import Bank, Weights, trainable_copy
from ia2.capture import SITES, Selection, Site, read
from ia2.data import Example
from ia2.jobs import Job, Metric, Rows, TrainingResult, TrainingSettings, arguments, best_of
from ia2.methods import METHODS, Stage, Term, methods
from ia2.models import LanguageModel
from ia2.prompt import build_prompt
from ia2.targets import collect
from ia2.task import Task
from ia2.training import StageTrainer, train_jobs, train_stage

PRIME = Stage((Term("attn_out", "nmse"),))
SETTINGS = TrainingSettings(1e-2, num_train_epochs=3, seed=1)


def rows_of(
    lm: LanguageModel,
    task: Task,
    examples: list[Example],
    demos: list[Example],
    selection: Selection = Selection(frozenset[Site](("attn_out", "logits"))),  # noqa: B008  (frozen)
) -> Rows:
    prompts = teacher_prompts(task, demos, examples)
    bare = [lm.encoder.encode(build_prompt(task, (), e.query, e.label)) for e in examples]
    return Rows(bare, collect(lm, prompts, selection))


def fit(
    lm: LanguageModel, stage: Stage, train: Rows, dev: Rows | None, settings: TrainingSettings
) -> tuple[TrainingResult, dict[str, Tensor]]:
    with new_adapter(lm, options={"r": 4, "lora_alpha": 4}) as model:
        return train_stage(lm, stage, train, dev, settings, "test"), trainable_copy(model)


@pytest.mark.parametrize("name", METHODS)
def test_every_stage_learns(any_lm: LanguageModel, name: str) -> None:
    stage = methods()[name].stages[0]
    rows = rows_of(any_lm, LABELS, example_rows(6), example_rows(6), Selection(frozenset(SITES)))
    result, _ = fit(any_lm, stage, rows, rows, replace(SETTINGS, num_train_epochs=10))
    losses = [entry["eval_loss"] for entry in result.log if "eval_loss" in entry]
    assert result.value is not None
    assert result.value < 0.9 * losses[0]


@pytest.mark.parametrize("stage", [PRIME, Stage((Term("logits", "ce"),))])
def test_gradient_accumulation_changes_nothing_nor_drops_the_last_window(lm: LanguageModel, stage: Stage) -> None:
    rows = rows_of(lm, GENERATED, reasoned_rows(6), reasoned_rows(6))  # 6 rows: a window of 4, and one of 2
    settings = replace(SETTINGS, num_train_epochs=1)
    _, whole = fit(lm, stage, rows, None, settings)
    split = replace(settings, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    result, parts = fit(lm, stage, rows, None, split)
    assert result.n_steps == 2
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-3, atol=1e-5)


def test_the_loss_is_a_mean_over_tokens_not_over_rows(lm: LanguageModel) -> None:
    rows = rows_of(lm, GENERATED, reasoned_rows(3), [])  # 3 responses of different lengths
    stage = Stage((Term("logits", "ce"),))
    result, _ = fit(lm, stage, rows, rows, replace(SETTINGS, num_train_epochs=1))
    first = next(entry["eval_loss"] for entry in result.log if "eval_loss" in entry)
    nll: list[float] = []
    sizes: list[int] = []
    for tokens, _ in rows.items:
        logp = lm.base(torch.tensor([tokens.ids])).logits[0].log_softmax(-1)
        start = len(tokens.ids) - tokens.n_response
        nll += [-logp[t - 1, tokens.ids[t]].item() for t in range(start, len(tokens.ids))]
        sizes.append(tokens.n_response)
    assert first == pytest.approx(sum(nll) / len(nll), rel=1e-5)
    ends = np.cumsum(sizes)
    per_row = [float(np.mean(nll[end - size : end])) for end, size in zip(ends, sizes, strict=True)]
    assert abs(float(np.mean(per_row)) - first) > 1e-3  # the published mean would show


def test_the_best_weights_are_copied_and_restored(lm: LanguageModel) -> None:
    rows, other = example_rows(4), [replace(e, response=str(1 - int(e.label))) for e in example_rows(4)]
    train, dev = rows_of(lm, LABELS, rows, []), rows_of(lm, LABELS, other, [])
    # Development rows contradict training rows: their loss falls while the labels are learnt, then rises.
    settings = replace(SETTINGS, num_train_epochs=30, eval_steps=1, early_stopping_patience=10)
    stage = Stage((Term("logits", "ce"),))
    result, restored = fit(lm, stage, train, dev, settings)
    losses = [entry["eval_loss"] for entry in result.log if "eval_loss" in entry]
    assert 0 < result.n_steps < len(losses) - 2
    assert losses[-2] > 1.1 * min(losses)
    assert result.value == min(losses)
    _, stopped_there = fit(lm, stage, train, None, replace(settings, num_train_epochs=result.n_steps))
    assert all(torch.equal(restored[name], stopped_there[name]) for name in restored)


def test_patience_stops(lm: LanguageModel) -> None:
    rows = rows_of(lm, LABELS, example_rows(4), [])
    other = rows_of(lm, LABELS, [replace(e, response=str(1 - int(e.label))) for e in example_rows(4)], [])
    settings = replace(SETTINGS, num_train_epochs=50, eval_steps=2, early_stopping_patience=3)
    result, _ = fit(lm, Stage((Term("logits", "ce"),)), rows, other, settings)
    assert max(entry["step"] for entry in result.log) == result.n_steps + 2 * 3


def test_the_same_seed_gives_the_same_bits_and_another_does_not(lm: LanguageModel) -> None:
    rows = rows_of(lm, LABELS, example_rows(6), example_rows(6))
    (_, one), (_, two) = (fit(lm, PRIME, rows, rows, SETTINGS) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    _, three = fit(lm, PRIME, rows, rows, replace(SETTINGS, seed=2))
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_without_demos_teacher_and_student_agree(any_lm: LanguageModel) -> None:
    rows = rows_of(any_lm, GENERATED, reasoned_rows(4), [])
    result, _ = fit(any_lm, PRIME, rows, rows, replace(SETTINGS, num_train_epochs=1))
    assert next(entry["eval_loss"] for entry in result.log if "eval_loss" in entry) < 1e-8
    with_demos = rows_of(any_lm, GENERATED, reasoned_rows(4), reasoned_rows(4))
    result, _ = fit(any_lm, PRIME, with_demos, with_demos, replace(SETTINGS, num_train_epochs=1))
    assert next(entry["eval_loss"] for entry in result.log if "eval_loss" in entry) > 1e-3


def test_a_disabled_adapter_is_the_base_bit_for_bit(any_lm: LanguageModel) -> None:
    rows = rows_of(any_lm, LABELS, example_rows(4), example_rows(4))
    batch = any_lm.encoder.collate([tokens for tokens, _ in rows.items])
    base = read(any_lm.base, any_lm.anatomy, batch, ("attn_out", "logits"))
    with new_adapter(any_lm, options={"r": 4, "lora_alpha": 4}) as model:
        train_stage(any_lm, PRIME, rows, rows, SETTINGS, "test")
        adapted = read(model, any_lm.anatomy, batch, ("attn_out", "logits"))
        with model.disable_adapter():
            off = read(model, any_lm.anatomy, batch, ("attn_out", "logits"))
    gone = read(any_lm.base, any_lm.anatomy, batch, ("attn_out", "logits"))
    for site in base:
        assert torch.equal(base[site], off[site])
        assert torch.equal(base[site], gone[site])
        assert not torch.equal(base[site], adapted[site])


def test_a_half_precision_base_has_a_float32_adapter_and_losses(lm: LanguageModel) -> None:
    lm.base.to(torch.bfloat16)
    rows = rows_of(lm, LABELS, example_rows(6), example_rows(6))
    assert rows[0][1]["attn_out"].dtype == torch.bfloat16
    result, weights = fit(lm, PRIME, rows, rows, replace(SETTINGS, num_train_epochs=10))
    losses = [entry["eval_loss"] for entry in result.log if "eval_loss" in entry]
    assert result.value is not None
    assert result.value < 0.9 * losses[0]
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    batch = lm.encoder.collate([tokens for tokens, _ in rows.items])
    student = read(lm.base, lm.anatomy, batch, ("attn_out",))["attn_out"].float()
    teacher = torch.cat([targets["attn_out"] for _, targets in rows.items]).float()
    by_hand = ((student - teacher) ** 2).mean((0, 2)) / (teacher**2).mean((0, 2))
    assert losses[0] == pytest.approx(by_hand.sum().item(), rel=1e-4)


def test_collated_targets_follow_their_rows(lm: LanguageModel, tmp_path: Path) -> None:
    rows = rows_of(lm, GENERATED, reasoned_rows(3), reasoned_rows(3))
    with new_adapter(lm) as model:
        job = Job(trainable_copy(model), rows, None, SETTINGS)
        trainer = StageTrainer(lm, PRIME, [job], Bank(model, [job.start]), arguments(SETTINGS, tmp_path, False))
    batch = trainer.collate([[rows[2]], [rows[0]]])
    expected = torch.cat([rows[2][1]["attn_out"], rows[0][1]["attn_out"]])
    assert torch.equal(batch["targets"]["attn_out"], expected)
    assert list(batch["targets"]) == ["attn_out"]


@pytest.mark.parametrize("metric", ["nll", "accuracy"])
def test_the_best_weights_can_be_chosen_by_another_metric(lm: LanguageModel, metric: Metric) -> None:
    rows = rows_of(lm, GENERATED, reasoned_rows(4), reasoned_rows(4))
    with new_adapter(lm, options={"r": 4, "lora_alpha": 4}) as model:
        result = train_stage(lm, PRIME, rows, rows, replace(SETTINGS, metric_for_best_model=metric))
        nll, hits = [], []
        for tokens, _ in rows.items:
            logp = model(torch.tensor([tokens.ids])).logits[0].log_softmax(-1)
            for t in range(len(tokens.ids) - tokens.n_response, len(tokens.ids)):
                nll.append(-logp[t - 1, tokens.ids[t]].item())
                hits.append(logp[t - 1].argmax().item() == tokens.ids[t])
    assert result.value == pytest.approx(np.mean(nll) if metric == "nll" else -np.mean(hits), rel=1e-4)


def test_a_hit_that_turns_by_rounding_does_not_end_a_training(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside other jobs a batch is rounded otherwise: where tokens are near, one of four rows turns."""
    rows, whole = rows_of(lm, LABELS, example_rows(4), example_rows(4)), StageTrainer.dev_values

    def rounded(self: StageTrainer) -> dict[int, tuple[float, float]]:
        return {g: (loss, value + 0.25 * (not self.is_in_train)) for g, (loss, value) in whole(self).items()}

    monkeypatch.setattr(StageTrainer, "dev_values", rounded)
    with new_adapter(lm):
        result = train_stage(lm, PRIME, rows, rows, replace(SETTINGS, metric_for_best_model="accuracy"))
    assert result.value is not None


def fit_harmed(
    lm: LanguageModel, has_dev: bool, monkeypatch: pytest.MonkeyPatch, harm: Callable[[int, Tensor], Tensor]
) -> tuple[Weights, TrainingResult, Weights]:
    """Weights after three sound steps; and what comes of nine, whose losses go through `harm` with their number."""
    rows = rows_of(lm, LABELS, example_rows(4), example_rows(4))
    whole, n_calls = StageTrainer.summed_losses, 0

    def harmed(self: StageTrainer, student: Any, inputs: Any) -> Tensor:
        nonlocal n_calls
        n_calls += self.model.training
        return harm(n_calls, whole(self, student, inputs))

    _, three = fit(lm, PRIME, rows, None, replace(SETTINGS, num_train_epochs=3))
    monkeypatch.setattr(StageTrainer, "summed_losses", harmed)
    settings = replace(SETTINGS, num_train_epochs=9, eval_steps=1)
    return three, *fit(lm, PRIME, rows, rows if has_dev else None, settings)


@pytest.mark.parametrize("has_dev", [False, True])
def test_a_gradient_that_is_not_finite_stops_a_step_later_with_the_weights_before_it(
    lm: LanguageModel, has_dev: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(step: int, losses: Tensor) -> Tensor:
        if step == 4 and losses.requires_grad:
            losses.register_hook(lambda gradient: gradient * float("nan"))
        return losses

    three, result, weights = fit_harmed(lm, has_dev, monkeypatch, harm)
    assert (result.stopped or "").startswith("no finite loss at step 5")
    assert result.n_steps == 3
    for name, weight in three.items():
        torch.testing.assert_close(weights[name], weight)


@pytest.mark.parametrize("has_dev", [False, True])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(
    lm: LanguageModel, has_dev: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def harm(step: int, losses: Tensor) -> Tensor:
        return losses * (float("nan") if step > 3 else 1.0)

    three, result, weights = fit_harmed(lm, has_dev, monkeypatch, harm)
    assert result.stopped is not None
    assert "no finite loss at step 4, learning rate 0.01; the weights of step" in result.stopped
    assert result.stopped in capsys.readouterr().err
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert result.n_steps == (3 if has_dev else 2)
    if has_dev:
        assert all(torch.equal(weights[name], three[name]) for name in three)


def test_gradient_checkpointing_changes_nothing(lm: LanguageModel) -> None:
    rows = rows_of(lm, LABELS, example_rows(4), example_rows(4))
    _, plain = fit(lm, PRIME, rows, None, SETTINGS)
    lm.base.activation_checkpointing_enable()
    _, checkpointed = fit(lm, PRIME, rows, None, SETTINGS)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_snapshots_are_the_weights_on_the_way_and_change_nothing(lm: LanguageModel) -> None:
    rows = rows_of(lm, LABELS, example_rows(8), example_rows(8))  # two updates an epoch
    settings = replace(SETTINGS, num_train_epochs=3, snapshots=2)
    result, last = fit(lm, PRIME, rows, None, settings)
    assert list(result.snapshots) == [0, 2, 4, 6]
    assert all(torch.equal(result.snapshots[6][name], weight) for name, weight in last.items())
    for n_epochs in (1, 2):  # weights after so many epochs of a training that ends there
        shorter, expected = fit(lm, PRIME, rows, None, replace(settings, num_train_epochs=n_epochs, snapshots=0))
        assert shorter.snapshots == {}
        found = result.snapshots[2 * n_epochs]
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    unwatched = fit(lm, PRIME, rows, None, replace(settings, snapshots=0))[1]
    assert all(torch.equal(unwatched[name], weight) for name, weight in last.items())


def test_a_training_that_ends_early_has_a_snapshot_of_its_end(lm: LanguageModel) -> None:
    """Also where another one beside it goes on."""
    rows = rows_of(lm, LABELS, example_rows(8), example_rows(8))
    settings = replace(SETTINGS, num_train_epochs=4, snapshots=100, early_stopping_patience=1, eval_steps=3)
    many = [replace(settings, learning_rate=rate) for rate in (1e-4, 10.0)]
    with new_adapter(lm, options={"r": 4, "lora_alpha": 4}) as model:
        goes_on, ends = train_jobs(lm, PRIME, [Job(trainable_copy(model), rows, rows, of) for of in many])
    assert (list(goes_on.snapshots), list(ends.snapshots)) == ([0, 8], [0, 3])
    assert ends.log[-1]["step"] == 3
    assert any((ends.snapshots[3][name] != weight).any() for name, weight in ends.weights.items())


def test_of_several_trainings_the_snapshots_of_the_best_are_kept(lm: LanguageModel) -> None:
    rows = rows_of(lm, LABELS, example_rows(8), example_rows(8))
    many = [replace(SETTINGS, learning_rate=rate, snapshots=2) for rate in (1e-5, 1e-2)]
    with new_adapter(lm, options={"r": 4, "lora_alpha": 4}) as model:
        results = train_jobs(lm, PRIME, [Job(trainable_copy(model), rows, rows, settings) for settings in many])
    best, record = best_of(many, results)
    assert record["learning_rate"] == 1e-2
    alone, _ = fit(lm, PRIME, rows, rows, many[1])
    assert list(best.snapshots) == list(alone.snapshots) == [0, 2, 4, 6]
    for name, weight in alone.snapshots[4].items():
        torch.testing.assert_close(best.snapshots[4][name], weight, rtol=1e-3, atol=1e-5)
