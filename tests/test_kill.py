"""Killed at any moment, a job goes on where it stopped and ends as if nothing had happened."""

import multiprocessing
from pathlib import Path

import pytest
from killing import kill

from ia2.errors import IA2Error
from ia2.files import locked


def test_thirty_kills_lose_nothing(tmp_path: Path) -> None:
    assert kill(tmp_path, n_kills=30, seed=0) >= 1


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
