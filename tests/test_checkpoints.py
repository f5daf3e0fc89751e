"""A training that is interrupted, wherever, ends with the same bytes as one that is not."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import example_rows
from killing import save_model

from ia2 import checkpoints
from ia2.config import make_config
from ia2.errors import IA2Error
from ia2.models import LanguageModel, load_model
from ia2.run import Data, Run, train_runs
from ia2.training import Steps

TRAIN, DEV = tuple(example_rows(10)), tuple(example_rows(13)[10:])  # 3 updates an epoch, the last of two rows
FAST: dict[str, Any] = {"num_train_epochs": 3, "learning_rate": (1e-3, 3e-2), "adapter_options": {"r": 4}}


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_model(save_model(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint behind every update."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)


def make_run(folder: Path, has_dev: bool = True, **options: Any) -> Run:
    return Run.create(folder, make_config({"model": "a model", **FAST, **options}), Data(TRAIN, DEV if has_dev else ()))


def left(run: Run) -> dict[str, Any]:
    """What trainings leave, but times."""
    found: dict[str, Any] = {}
    for name, folder in run.adapters.items():
        record = json.loads((folder / "training.json").read_text())
        found[name] = {key: value for key, value in record.items() if "seconds" not in key}
        found[name]["weights"] = next(folder.glob("*model.safetensors")).read_bytes()
    for path in run.folder.glob("snapshots/**/*.safetensors"):
        found[str(path.relative_to(run.folder))] = path.read_bytes()
    return found


class Updates:
    """Counts updates, and interrupts some of them before they begin, and every training once when it has ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, interrupt: bool):
        self.n, self.ended, self.resumed = 0, 0, list[int]()
        begin = Steps.on_step_begin

        def on_step_begin(steps: Steps, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.n += 1
            if interrupt and self.n in (2, 5, 11):
                raise KeyboardInterrupt
            begin(steps, args, state, control, **kwargs)

        def on_optimizer_step(steps: Steps, *args: Any, **kwargs: Any) -> None:
            assert list(steps.trainer.bank.active) == steps.trainer.running

        def on_train_begin(steps: Steps, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.resumed.append(state.global_step)

        def on_train_end(steps: Steps, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ended += 1
            if interrupt and self.ended % 2 == 1:
                raise KeyboardInterrupt

        for event in (on_step_begin, on_optimizer_step, on_train_begin, on_train_end):
            monkeypatch.setattr(Steps, event.__name__, event)


def interruptions_of(run: Run, train: Callable[[], Any]) -> int:
    """Make the call again and again until it ends."""
    for n in range(100):
        try:
            train()
        except KeyboardInterrupt:
            assert not list(run.folder.rglob("*.partial"))
            assert len(list(run.folder.glob("checkpoints/*"))) <= 1
            assert len(list(run.folder.glob("checkpoints/*/*/*"))) <= 1
            continue
        return n
    raise AssertionError("it does not end")


STOPPING: dict[str, Any] = {"early_stopping_patience": 1, "eval_steps": 1, "num_train_epochs": 9}
RENEWED: dict[str, Any] = {"reshuffle": True, "method": "ia2", "n_demos": 2}
KINDS: dict[str, dict[str, Any]] = {
    "bank with snapshots": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "snapshots": 2},
    "bank without development rows": {"has_dev": False},
    "one after another, dropout": {"method": "sft", "adapter_options": {"r": 4, "lora_dropout": 0.3}},
    "all weights, renewed": {"adapter": "full", "adapter_options": {}, **RENEWED},
    "renewed without development rows": {"has_dev": False, **RENEWED},
    "stopping early": {"method": "sft", **STOPPING, "learning_rate": (1e-2, 1e-1)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("often")
def test_interrupted_anywhere_it_ends_with_the_same_bytes(
    kind: str, lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, run = (make_run(tmp_path / name, **KINDS[kind]) for name in ("undisturbed", "run"))
    with monkeypatch.context() as patches:
        whole = Updates(patches, interrupt=False)
        undisturbed.train(lm)
    again = Updates(monkeypatch, interrupt=True)
    n = interruptions_of(run, partial(run.train, lm))
    assert n > 3
    assert max(again.resumed) > 4
    assert again.n <= whole.n + n  # but the interrupted updates, none is computed twice
    assert left(run) == left(undisturbed)
    assert {path.name for path in run.folder.iterdir()} == {path.name for path in undisturbed.folder.iterdir()}


@pytest.mark.usefixtures("often")
def test_runs_that_are_trained_together_go_on_together(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = ([make_run(tmp_path / f"{name}{seed}", method="sft", seed=seed) for seed in (0, 1)] for name in "ab")
    train_runs(whole, lm)
    Updates(monkeypatch, interrupt=True)
    assert interruptions_of(parts[0], partial(train_runs, parts, lm)) > 3
    assert [left(run) for run in parts] == [left(run) for run in whole]
    assert left(whole[0]) != left(whole[1])


def test_a_short_training_writes_no_checkpoint_and_what_is_left_of_one_goes(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "save_file", lambda *_: pytest.fail("a checkpoint"))
    run = make_run(tmp_path / "run", method="sft")
    run.train(lm)
    (run.folder / "checkpoints").mkdir()  # as where a call is killed before it removes them
    run.train(lm)
    assert not (run.folder / "checkpoints").exists()


@pytest.mark.parametrize("name", [checkpoints.TENSORS, checkpoints.STATE, "trainer_state.json"])
@pytest.mark.usefixtures("often")
def test_a_checkpoint_that_is_not_as_it_was_written(
    name: str, lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", method="sft")
    with monkeypatch.context() as patches:
        Updates(patches, interrupt=True)
        with pytest.raises(KeyboardInterrupt):
            run.train(lm)
    [path] = run.folder.glob(f"checkpoints/*/*/checkpoint-1/{name}")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IA2Error, match=rf"checkpoint-1/{name}: not as it was written .*; delete .*/checkpoint-1 and"):
        run.train(lm)
    for part in path.parent.iterdir():
        part.unlink()
    path.parent.rmdir()
    run.train(lm)
