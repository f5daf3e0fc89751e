"""Adapters side by side are what they are alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import GENERATED, example_rows, reasoned_rows, teacher_prompts
from test_training import PRIME, rows_of
from torch import Tensor

from ia2.adapters import new_adapter
from ia2.bank import Bank, Weights, can_bank, restore, trainable_copy
from ia2.capture import read
from ia2.jobs import Job, Rows, TrainingResult, TrainingSettings, side_by_side
from ia2.methods import Stage, Term
from ia2.models import LanguageModel
from ia2.targets import live
from ia2.training import StageTrainer, train_jobs

TUNE = Stage((Term("logits", "ce"),))
BOTH = Stage((Term("attn_out", "huber", 0.5), Term("logits", "kl")))
SETTINGS = TrainingSettings(3e-3, num_train_epochs=4, seed=1)


def random_weights(model: torch.nn.Module, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(w.shape, generator=generator) for name, w in trainable_copy(model).items()}


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "r": 3, "lora_alpha": 5}])
def test_each_slice_is_computed_with_its_own_adapter(any_lm: LanguageModel, options: dict[str, Any]) -> None:
    rows = [any_lm.encoder.encode(prompt) for prompt in map(_prompt, reasoned_rows(6))]
    batch = any_lm.encoder.collate(rows)
    with new_adapter(any_lm, options=options) as model:
        assert can_bank(model)
        starts = [random_weights(model, g) for g in range(4)]
        bank = Bank(model, starts)
        bank.active = (2, 0, 3)
        with bank.attached():
            found = read(model, any_lm.anatomy, batch, ("attn_out", "logits"))
        for i, g in enumerate(bank.active):
            restore(model, starts[g])
            slice_of = any_lm.encoder.collate(rows[2 * i : 2 * i + 2])
            alone = read(model, any_lm.anatomy, slice_of, ("attn_out", "logits"))
            n_before = sum(row.n_response for row in rows[: 2 * i])
            for site, values in alone.items():
                torch.testing.assert_close(found[site][n_before : n_before + len(values)], values, rtol=1e-4, atol=1e-5)
        with model.disable_adapter():
            base = read(model, any_lm.anatomy, slice_of, ("logits",))["logits"]
        assert not torch.allclose(alone["logits"], base, atol=1e-2)


def _prompt(example: Any) -> Any:
    from ia2.prompt import build_prompt

    return build_prompt(GENERATED, (), example.query, example.label)


def jobs_of(lm: LanguageModel, model: torch.nn.Module, dev: bool = True) -> list[Job]:
    """Of several rates, seeds, rows and first weights."""
    jobs = []
    for seed, examples in enumerate((reasoned_rows(6), reasoned_rows(13)[7:])):
        train, other = rows_of(lm, GENERATED, examples, examples), rows_of(lm, GENERATED, reasoned_rows(4), examples)
        start = trainable_copy(model) if seed else random_weights(model, 0)
        for rate in (1e-3, 1e-2):
            settings = replace(SETTINGS, learning_rate=rate, seed=seed)
            jobs.append(Job(start, train, other if dev else None, settings))
    return jobs


@pytest.mark.parametrize("stage", [PRIME, TUNE, BOTH], ids=["prime", "tune", "both"])
@pytest.mark.parametrize("dev", [True, False])
def test_a_training_beside_others_ends_as_it_does_alone(lm: LanguageModel, stage: Stage, dev: bool) -> None:
    lm.base.double()  # in float32 Adam makes whole steps of rounding where a gradient is almost 0
    with new_adapter(lm) as model:
        jobs = jobs_of(lm, model, dev)
        assert list(side_by_side(lm, jobs)) == [[0, 2, 1, 3]]  # those of one rate stand together
        together = train_jobs(lm, stage, jobs)
        alone = [train_jobs(lm, stage, [job])[0] for job in jobs]
    assert [result.n_jobs for result in together] == [4] * 4
    for one, other in zip(together, alone, strict=True):
        assert other.n_jobs == 1
        assert one.n_steps == other.n_steps > 0
        assert losses(one) == pytest.approx(losses(other), rel=1e-3)
        assert one.value == (pytest.approx(other.value, rel=1e-3) if dev else None)
    ends = [losses(result)[-1] for result in alone]
    assert len({round(end, 3) for end in ends}) == 4  # or the test could not tell them apart


def losses(result: TrainingResult) -> list[float]:
    return [value for entry in result.log for name, value in entry.items() if name in ("loss", "eval_loss")]


def test_targets_that_are_computed_when_needed_change_nothing(lm: LanguageModel) -> None:
    lm.base.double()
    prompts = teacher_prompts(GENERATED, examples := reasoned_rows(6), examples)
    with new_adapter(lm) as model:
        jobs = jobs_of(lm, model)
        again = [replace(j, train=Rows(j.train.rows, live(lm, prompts, PRIME.selection(lm.anatomy)))) for j in jobs[:2]]
        stored, computed = (train_jobs(lm, PRIME, of) for of in (jobs[:2], again))
    for one, other in zip(stored, computed, strict=True):
        assert losses(one) == pytest.approx(losses(other), rel=1e-6)


def test_accumulation_side_by_side_changes_nothing(lm: LanguageModel) -> None:
    with new_adapter(lm) as model:
        jobs = jobs_of(lm, model)
        whole = train_jobs(lm, TUNE, jobs)
        split = [
            replace(job, settings=replace(job.settings, per_device_train_batch_size=2, gradient_accumulation_steps=2))
            for job in jobs
        ]
        parts = train_jobs(lm, TUNE, split)
    for one, other in zip(whole, parts, strict=True):
        assert losses(one) == pytest.approx(losses(other), rel=1e-3)


def test_one_that_runs_out_of_patience_leaves_the_others_alone(lm: LanguageModel) -> None:
    lm.base.double()
    with new_adapter(lm) as model:
        jobs = jobs_of(lm, model)
        hasty = [replace(j, settings=replace(j.settings, num_train_epochs=12, early_stopping_patience=1)) for j in jobs]
        hasty[3] = replace(hasty[3], settings=replace(hasty[3].settings, learning_rate=0.3))
        together, alone = train_jobs(lm, TUNE, hasty), [train_jobs(lm, TUNE, [job])[0] for job in hasty]
    steps = [max(entry["step"] for entry in result.log) for result in together]
    assert steps == [max(entry["step"] for entry in result.log) for result in alone]
    assert steps[3] < max(steps)
    for one, other in zip(together, alone, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-3)


def test_one_without_a_finite_loss_leaves_the_others_alone(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, n_calls = StageTrainer.summed_losses, 0

    def broken(self: StageTrainer, student: Any, inputs: Any) -> Tensor:
        nonlocal n_calls
        n_calls += self.model.training
        bad = torch.tensor([float("nan") if g == 2 and n_calls > 3 else 1.0 for g in inputs["jobs"]])
        return whole(self, student, inputs) * bad[:, None]

    with new_adapter(lm) as model:
        jobs = jobs_of(lm, model)
        good = train_jobs(lm, TUNE, jobs)
        monkeypatch.setattr(StageTrainer, "summed_losses", broken)
        found = train_jobs(lm, TUNE, jobs)
    assert [result.stopped is None for result in found] == [True, False, True, True]
    assert "no finite loss at step 4, learning rate 0.01" in capsys.readouterr().err
    assert all(torch.isfinite(weight).all() for result in found for weight in result.weights.values())
    for g in (0, 2, 3):
        assert found[g].value == pytest.approx(good[g].value, rel=1e-4)


def test_two_without_a_finite_loss_in_parts_of_one_update_end_there(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, n_calls = StageTrainer.summed_losses, 0

    def broken(self: StageTrainer, student: Any, inputs: Any) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        bad = torch.tensor([float("nan") if (n_calls, g) in ((3, 0), (4, 1)) else 1.0 for g in inputs["jobs"]])
        return whole(self, student, inputs) * bad[:, None]

    settings = replace(SETTINGS, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    with new_adapter(lm) as model:
        jobs = [replace(job, settings=settings) for job in jobs_of(lm, model, dev=False)[:2]]
        monkeypatch.setattr(StageTrainer, "summed_losses", broken)
        found = train_jobs(lm, TUNE, jobs)
    assert [(result.stopped or "")[:24] for result in found] == ["no finite loss at step 2"] * 2


@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        ("dora", {}),
        ("ia3", {}),
        ("prompt-tuning", {}),
        ("lora", {"lora_dropout": 0.1}),
        ("lora", {"target_modules": ["q_proj", "lm_head"]}),
    ],
)
def test_other_adapters_are_trained_one_after_another(lm: LanguageModel, adapter: str, options: dict[str, Any]) -> None:
    with new_adapter(lm, adapter, options) as model:
        start = trainable_copy(model)
        rows = rows_of(lm, GENERATED, reasoned_rows(4), reasoned_rows(4))
        rates = [replace(SETTINGS, learning_rate=rate, num_train_epochs=1) for rate in (1e-3, 1e-2)]
        results = train_jobs(lm, TUNE, [Job(start, rows, rows, settings) for settings in rates])
    assert [result.n_jobs for result in results] == [1, 1]
    assert losses(results[0])[0] == pytest.approx(losses(results[1])[0], rel=1e-5)  # both from the same weights


def test_jobs_of_other_shapes_are_trained_apart(lm: LanguageModel) -> None:
    with new_adapter(lm) as model:
        jobs = jobs_of(lm, model)
        few = rows_of(lm, GENERATED, reasoned_rows(3), [])
        jobs[1] = replace(jobs[1], train=few)
        jobs[2] = replace(jobs[2], settings=replace(jobs[2].settings, eval_steps=3))
        assert list(side_by_side(lm, jobs)) == [[0, 3], [1], [2]]


def test_the_base_is_left_as_it_was(lm: LanguageModel) -> None:
    batch = lm.encoder.collate([lm.encoder.encode(_prompt(row)) for row in example_rows(4)])
    before = read(lm.base, lm.anatomy, batch, ("logits",))["logits"]
    with new_adapter(lm) as model:
        train_jobs(lm, TUNE, jobs_of(lm, model))
        with model.disable_adapter():
            assert torch.equal(read(model, lm.anatomy, batch, ("logits",))["logits"], before)
    assert torch.equal(read(lm.base, lm.anatomy, batch, ("logits",))["logits"], before)
