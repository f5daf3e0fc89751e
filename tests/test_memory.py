"""Where memory runs out, less is done at once, and the results are the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import GENERATED, LABELS, example_rows, reasoned_rows
from test_bank import SETTINGS, TUNE, jobs_of, losses
from test_passes import DEMOS

from ia2 import cli
from ia2.adapters import new_adapter
from ia2.config import make_config
from ia2.contexts import Contexts
from ia2.evaluation import Variant, answer, sampled_answers
from ia2.jobs import smaller
from ia2.memory import free, in_halves
from ia2.models import LanguageModel
from ia2.passes import passes
from ia2.prompt import build_prompt
from ia2.run import Data, Run
from ia2.training import train_jobs

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
]


@contextmanager
def room_for(lm: LanguageModel, n_rows: int, error: RuntimeError = ERRORS[0]) -> Iterator[list[int]]:
    """The first layer refuses more rows; yields how many each pass had that was not refused."""
    passed: list[int] = []

    def refuse(module: Any, args: Any) -> None:
        if len(args[0]) > n_rows:
            raise error
        passed.append(len(args[0]))

    handle = lm.base.model.layers[0].register_forward_pre_hook(refuse)
    try:
        yield passed
    finally:
        handle.remove()


@pytest.mark.parametrize("error", ERRORS)
def test_batches_are_halved_until_they_fit(error: RuntimeError, capsys: pytest.CaptureFixture[str]) -> None:
    def work(batch: Any) -> int:
        if len(batch) > 2:
            raise error
        return sum(batch)

    done = list(in_halves([[0, 1, 2, 3, 4], [5, 6, 7], [8]], work))
    assert [list(batch) for batch, _ in done] == [[0, 1], [2], [3, 4], [5, 6], [7], [8]]
    assert [found for _, found in done] == [1, 2, 7, 11, 7, 8]
    assert "out of memory with 5 rows at once; now half as many" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "n"), [(ERRORS[0], 1), (RuntimeError("shapes do not fit"), 2), (KeyError("a"), 2)])
def test_one_that_does_not_fit_and_other_errors_are_raised(error: Exception, n: int) -> None:
    def work(batch: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        list(in_halves([list(range(n))], work))


def test_values_and_answers_are_the_same(lm: LanguageModel) -> None:
    prompts = [build_prompt(GENERATED, DEMOS, row.query, row.label) for row in reasoned_rows(7)]
    rows, icl = [lm.encoder.encode(prompt) for prompt in prompts], Variant("icl", Contexts(tuple(DEMOS), "fixed"))

    def found() -> Iterator[Any]:
        values = {
            i: part
            for chosen, batch, of in passes(lm, rows, {"attn_out"})
            for i, part in zip(chosen, of["attn_out"].split([rows[i].n_response for i in chosen]), strict=True)
        }
        yield from (values[i] for i in range(len(rows)))
        for task in (LABELS, GENERATED):
            yield from (
                torch.tensor([a.confidence, a.p_answer, a.n_tokens]) for a in answer(lm, task, example_rows(5), icl)
            )

    whole = list(found())
    with room_for(lm, 2) as passed:
        parts = list(found())
    assert max(passed) == 2
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    with room_for(lm, 2):
        assert [len(texts) for texts in sampled_answers(lm, GENERATED, example_rows(2), icl, 3, seed=0)] == [3, 3]


@pytest.mark.parametrize(
    ("n_rows", "dev", "said"),
    [
        (8, True, "4 trainings side by side; now half as many"),
        (2, False, "4 rows in a pass; now 2, and 2 passes an update"),
    ],
)
def test_trainings_end_as_with_more_memory(
    n_rows: int, dev: bool, said: str, lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm.base.double()
    with new_adapter(lm) as model:
        jobs = jobs_of(lm, model, dev)
        whole = train_jobs(lm, TUNE, jobs)
        with room_for(lm, n_rows) as passed:
            parts = train_jobs(lm, TUNE, jobs, "tune", folder=tmp_path)
    assert max(passed) == n_rows
    assert f"tune: out of memory with {said}" in capsys.readouterr().err
    assert [part.n_jobs for part in parts] == [2 if n_rows == 8 else 1] * 4
    for one, other in zip(parts, whole, strict=True):
        assert one.n_steps == other.n_steps
        assert losses(one) == pytest.approx(losses(other), rel=1e-3)


@pytest.mark.parametrize(
    ("n", "n_passes", "then"), [(4, 1, (2, 2)), (3, 1, (1, 3)), (6, 2, (3, 4)), (5, 3, (1, 15)), (2, 5, (1, 10))]
)
def test_fewer_rows_in_a_pass_are_as_many_an_update(lm: LanguageModel, n: int, n_passes: int, then: Any) -> None:
    with new_adapter(lm) as model:
        job = jobs_of(lm, model)[0]
    settings = replace(SETTINGS, per_device_train_batch_size=n, gradient_accumulation_steps=n_passes)
    [[found]] = smaller([replace(job, settings=settings)], "a")
    assert (found.settings.per_device_train_batch_size, found.settings.gradient_accumulation_steps) == then
    assert smaller([replace(job, settings=replace(settings, per_device_train_batch_size=1))], "a") == []


def test_the_command_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(error: RuntimeError) -> Callable[..., None]:
        def app(**_: Any) -> None:
            raise error

        return app

    monkeypatch.setattr(cli, "app", run(ERRORS[0]))
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    said = capsys.readouterr().err
    assert said.startswith("ia2: out of memory even with one row at once (CUDA out of memory. Tried")
    assert said.count("\n") == 1
    monkeypatch.setattr(cli, "app", run(RuntimeError("a mistake")))
    with pytest.raises(RuntimeError, match="a mistake"):
        cli.main()


@pytest.mark.parametrize("n_bytes", [10, 10**12])
def test_training_says_before_it_begins_that_memory_is_short(
    n_bytes: int, lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ia2.run.free", lambda _: n_bytes)
    options = {"model": "a model", "method": "ia2-sft", "num_train_epochs": 1, "learning_rate": (1e-3,)}
    Run.create(tmp_path / "run", make_config(options), Data(tuple(example_rows(3)))).begin(lm)
    said = [line for line in capsys.readouterr().err.splitlines() if "GB are needed" in line]
    assert [line.split(":")[0] for line in said] == (["ia2", "ia2-sft"] if n_bytes == 10 else [])


def test_what_is_free() -> None:
    assert 2**20 < free(torch.device("cpu")) < psutil.virtual_memory().total
