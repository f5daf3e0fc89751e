"""Killed at any moment, a job goes on where it stopped and ends as if nothing had happened."""

import multiprocessing
import os
import signal
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from conftest import example_rows
from killing import context, kill, save_model, tear
from test_checkpoints import left

from ia2 import checkpoints, cli
from ia2.errors import IA2Error
from ia2.files import locked, write_jsonl
from ia2.run import Run
from ia2.training import Steps


def test_thirty_kills_lose_nothing(tmp_path: Path) -> None:
    n_done, _ = kill(tmp_path, n_kills=30, seed=0)
    assert n_done >= 1


def test_a_kill_in_the_middle_of_any_write_loses_nothing(tmp_path: Path) -> None:
    torn = tear(tmp_path)
    assert len(torn) == len(set(torn))
    for name in (
        "examples",
        "config",
        "targets",
        "teacher",
        "state.safetensors",
        "adapter_model",
        "training",
        "metrics",
    ):
        assert any(name in path for path in torn)


def _hold(folder: Path, held: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with locked(folder):
        held.set()
        done.wait(60)


def test_a_folder_in_use_is_refused_and_free_again_when_its_process_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, done))
    process.start()
    assert held.wait(60)
    with pytest.raises(IA2Error, match="in use by another process; wait for it"), locked(tmp_path):
        pass
    process.kill()
    process.join()
    with locked(tmp_path):
        pass


def command(folder: str, model: str, sent: int, update: int) -> None:
    """`ia2 train` that sends itself a signal before an update."""
    n = 0

    def on_step_begin(steps: Steps, *args: Any, **kwargs: Any) -> None:
        nonlocal n
        n += 1
        if n == update:
            os.kill(os.getpid(), sent)

    Steps.on_step_begin = on_step_begin  # type: ignore[method-assign]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    checkpoints.CHECKPOINT_SECONDS = 0.0
    options = ["--learning-rate", "1e-3,1e-2", "--num-train-epochs", "4", "--method", "sft"]
    sys.argv = ["ia2", "train", "--model", model, "--train", f"{folder}.jsonl", "--output", folder, *options]
    with open(f"{folder}.log", "a") as log, redirect_stderr(log):
        cli.main()


def test_a_signal_while_training(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    calls = [("undisturbed", 0, 0), ("run", signal.SIGKILL, 6), ("run", signal.SIGINT, 3), ("run", 0, 0)]
    for name, sent, update in calls:
        write_jsonl(tmp_path / f"{name}.jsonl", ({"query": e.query, "response": e.label} for e in example_rows(13)))
        process = context.Process(target=command, args=(str(tmp_path / name), model, sent, update))
        process.start()
        process.join()
        assert process.exitcode == {0: 0, signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[sent]
        assert len(list(tmp_path.glob("run/checkpoints/*/*/checkpoint-*"))) == bool(sent)
    assert left(Run.open(tmp_path / "run")) == left(Run.open(tmp_path / "undisturbed"))
    log = (tmp_path / "run.log").read_text()
    assert "sft: goes on from checkpoint-5" in log
    assert "ia2: interrupted; the same command again continues" in log
    assert "sft: goes on from checkpoint-7" in log
