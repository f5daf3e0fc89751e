"""A small job that is killed at random moments until it ends, in processes forked from one that has all imported."""

import multiprocessing
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import safetensors.torch
from conftest import example_rows, random_model

from ia2 import checkpoints
from ia2.config import make_config
from ia2.files import read_json, read_jsonl
from ia2.run import Data, Run
from ia2.world.tokenizer import build_tokenizer

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["ia2.cli", "ia2.run", "transformers.models.llama.modeling_llama"])


def job(folder: str, model: str, num_train_epochs: int = 2) -> None:
    """Collect, two stages with two learning rates each, evaluation."""
    options = {"num_train_epochs": num_train_epochs, "learning_rate": (1e-3, 1e-2), "adapter_options": {"r": 4}}
    data = Data(tuple(example_rows(6)), tuple(example_rows(9)[6:]))
    run = Run.create(folder, make_config({"model": model, **options}), data)
    run.train()
    run.evaluate(example_rows(8))


def careful_job(folder: str, model: str) -> None:
    """The same, of longer trainings, with a checkpoint behind every update."""
    checkpoints.CHECKPOINT_SECONDS = 0.0
    job(folder, model, num_train_epochs=12)


def torn_job(folder: str, model: str, log: str) -> None:
    """The same, killed in the middle of the first write that is not in `log`, where it is noted."""
    torn, text, tensors = Path(log).read_text().splitlines(), Path.write_text, safetensors.torch.serialize_file

    def tear(path: Path) -> None:
        name = re.sub(r"\d+", "N", str(path.relative_to(Path(folder).parent)))
        if name not in torn:
            os.truncate(path, path.stat().st_size // 2)
            with open(log, "a") as file:
                file.write(f"{name}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def write_text(path: Path, *args: Any, **kwargs: Any) -> None:
        text(path, *args, **kwargs)
        tear(path)

    def serialize_file(values: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        tensors(values, path, *args, **kwargs)
        tear(Path(path))

    Path.write_text = write_text  # type: ignore[assignment,method-assign]
    safetensors.torch.serialize_file = serialize_file
    careful_job(folder, model)


def tear(folder: Path) -> list[str]:
    """Kill the job in the middle of each of its writes, each time to go on with what it left, until it ends.

    Returns:
        The files that were torn; in the end there are those of an undisturbed job.
    """
    model, log = save_model(folder / "model"), folder / "log"
    log.touch()
    assert not _run(folder / "undisturbed", model, None)
    for _ in range(100):
        process = context.Process(target=torn_job, args=(str(folder / "job"), model, str(log)))
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            break
    assert process.exitcode == 0
    _check(folder / "job", folder / "undisturbed")
    return log.read_text().splitlines()


def save_model(folder: Path) -> str:
    """A small random one."""
    random_model("llama").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def kill(folder: Path, n_kills: int, seed: int) -> tuple[int, int]:
    """Kill the job at `n_kills` random moments, each time to go on with what it left; a job that ends is checked.

    Returns:
        The number of jobs that ended, all of them with the bytes of an undisturbed one; and that of kills that left a
        training behind its first update.
    """
    rng, model, n_done, n_inside = random.Random(seed), save_model(folder / "model"), 0, 0
    _run(folder / "undisturbed", model, None)
    began = time.perf_counter()
    _run(folder / "again", model, None)
    longest = time.perf_counter() - began
    _check(folder / "again", folder / "undisturbed")
    while n_kills:
        if _run(folder / f"job{n_done}", model, rng.uniform(0, longest)):
            n_kills -= 1
            n_inside += any(folder.glob(f"job{n_done}/checkpoints/*/*/checkpoint-*"))
        else:
            _check(folder / f"job{n_done}", folder / "undisturbed")
            n_done += 1
    _run(folder / f"job{n_done}", model, None)
    _check(folder / f"job{n_done}", folder / "undisturbed")
    return n_done + 1, n_inside


def _run(folder: Path, model: str, seconds: float | None) -> bool:
    """Whether the job was still at work after so many seconds, and was killed."""
    process = context.Process(target=careful_job, args=(str(folder), model))
    process.start()
    process.join(seconds)
    at_work = process.is_alive()
    process.kill()
    process.join()
    assert at_work or process.exitcode == 0
    return at_work


def _check(folder: Path, other: Path) -> None:
    names = {path.relative_to(other) for path in other.rglob("*.safetensors")}
    assert names == {path.relative_to(folder) for path in folder.rglob("*.safetensors")}
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert _answers(folder) == _answers(other)
    assert read_json(folder / "metrics.json")["methods"].keys() == read_json(other / "metrics.json")["methods"].keys()
    assert not list(folder.rglob("*.partial"))


def _answers(folder: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(folder / "predictions.jsonl")]
