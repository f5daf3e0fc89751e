"""A run on two processes, each with all weights or with its share of them (FSDP), ends as that of one process."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from conftest import random_model, reasoned_rows
from safetensors.torch import load_file
from transformers import TrainerState

import ia2.targets
from ia2 import checkpoints
from ia2.adapters import new_adapter
from ia2.capture import Selection
from ia2.cli import main
from ia2.errors import IA2Error
from ia2.files import read_json, read_jsonl, write_json, write_jsonl
from ia2.jobs import Epoch, Job, Rows, TrainingSettings
from ia2.models import LanguageModel
from ia2.processes import processes
from ia2.prompt import Tokens
from ia2.run import Run
from ia2.targets import Targets
from ia2.trainer import IA2Config, IA2Trainer
from ia2.training import Steps
from ia2.world.tokenizer import build_tokenizer

SIZES = {"train": 7, "dev": 3, "test": 3, "unlabelled": 5}
OPTIONS = {
    "labels": "none",
    "max_new_tokens": 4,
    "layers": "first:2",  # so that the loss of a stage does not reach all of the adapter
    "learning_rate": [1e-2, 3e-3],
    "num_train_epochs": 2,
    "per_device_train_batch_size": 3,  # an odd number, of 7 and 12 rows
    "gradient_accumulation_steps": 2,
}
DROPOUT = "--set=adapter_options={lora_dropout: 0.3}"  # for which the random state of each process counts


def prepare(folder: Path) -> None:
    """A model, options and rows."""
    random_model("llama").save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    write_json(folder / "options.yaml", {"model": str(folder / "model"), **OPTIONS})
    rows = [{"query": row.query, "response": row.response} for row in reasoned_rows(13)]
    rows += [{"query": f"{row['query']} ", "response": None} for row in rows[:5]]
    for split, n in SIZES.items():
        write_jsonl(folder / f"{split}.jsonl", rows[:n])
        rows = rows[n:]


def train(folder: Path, name: str, *more: str) -> None:
    """By the command line."""
    files = [f"--{split}={folder / split}.jsonl" for split in SIZES]
    sys.argv = ["ia2", "train", f"--config={folder / 'options.yaml'}", f"--output={folder / name}", *files, *more]
    main()


def train_in_python(folder: Path, name: str) -> None:
    """One stage, by `IA2Trainer`; its log and its weights."""
    options = {name: of for name, of in OPTIONS.items() if name in ("labels", "max_new_tokens", "layers")}
    own: dict[str, Any] = {"num_train_epochs": 3, "learning_rate": 1e-2, "disable_tqdm": True, "options": options}
    args = IA2Config(str(folder / name), per_device_train_batch_size=4 // processes().num_processes, **own)
    rows, dev = (read_jsonl(folder / f"{split}.jsonl") for split in ("train", "dev"))
    trainer = IA2Trainer(str(folder / "model"), args, rows, dev)
    trainer.train()
    trainer.save_model(str(folder / name / "saved"))
    write_json(folder / name / "log.json", trainer.records[0].log)


def train_interrupted(folder: Path, name: str) -> list[int]:
    """The same again and again until it ends, interrupted at some updates: those that it went on from."""
    begin, resumed, updates = Steps.on_step_begin, list[int](), count(1)

    def on_step_begin(steps: Steps, *args: Any, **kwargs: Any) -> None:
        if next(updates) in (2, 5, 11):
            raise KeyboardInterrupt
        begin(steps, *args, **kwargs)

    def on_train_begin(steps: Steps, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        resumed.append(state.global_step)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Steps, "on_step_begin", on_step_begin)
        patches.setattr(Steps, "on_train_begin", on_train_begin)
        patches.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0 if os.environ["RANK"] == "0" else math.inf)
        ended = False
        while not ended:
            with suppress(SystemExit):
                train(folder, name, DROPOUT)
                ended = True
    return resumed


def program(folder: Path) -> None:
    """What each of two processes does: both runs, with a note of what it computed and of the weights that it had.

    Two more with dropout, one of which is interrupted, and a training in Python.
    """
    collect, load = ia2.targets._collect, Run.load_model
    collected: list[int] = []
    held: list[int] = []

    def counted(lm: LanguageModel, rows: Sequence[Tokens], selection: Selection) -> Any:
        collected.append(len(rows))
        return collect(lm, rows, selection)

    def loaded(run: Run) -> LanguageModel:
        lm = load(run)
        held[:] = [getattr(weight, "_local_tensor", weight).numel() for weight in lm.base.parameters()]
        return lm

    ia2.targets.SHARD_BYTES, ia2.targets._collect, Run.load_model = 4000, counted, loaded  # type: ignore[method-assign]
    for kind in ("whole", "shared"):
        os.environ["ACCELERATE_USE_FSDP"] = str(kind == "shared").lower()
        collected.clear()
        train(folder, kind)
        note = {"collected": collected[:], "held": sum(held)}
        train_in_python(folder, f"{kind} python")
        train(folder, f"{kind} dropout", DROPOUT)
        note["resumed"] = train_interrupted(folder, f"{kind} again")
        (folder / f"{kind}{os.environ['RANK']}.json").write_text(json.dumps(note))


def program_of_deepspeed(folder: Path, stage: str) -> None:
    """What each of two processes does with DeepSpeed; accelerate knows no way for these to talk on CPUs."""
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.NO)
    checkpoints.CHECKPOINT_SECONDS = 0.0  # and yet there are none
    train(folder, f"zero{stage}")


LAUNCH = "-m accelerate.commands.launch --num_processes 2 --num_machines 1 --main_process_port 0"


def launch(options: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """This file, on two processes."""
    command = [sys.executable, *f"{LAUNCH} --mixed_precision no --dynamo_backend no {options}".split(), __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)


def test_two_processes_end_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    done = launch("--multi_gpu", str(tmp_path), ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-4000:]
    monkeypatch.setattr("ia2.targets.SHARD_BYTES", 4000)
    monkeypatch.setattr("sys.argv", [])
    train(tmp_path, "one")
    one = tmp_path / "one"
    train_in_python(tmp_path, "one python")
    for kind in ("whole", "shared"):
        two = tmp_path / kind
        notes = [read_json(tmp_path / f"{kind}{rank}.json") for rank in "01"]
        check_targets(one, two, [note["collected"] for note in notes])
        check_trainings(one, two)
        check_answers(one, two)
        check_trainings_in_python(tmp_path / "one python", tmp_path / f"{kind} python")
        assert files(two, "*").keys() == files(one, "*").keys()  # nothing is left over
        assert notes[0]["held"] == notes[1]["held"]
        assert notes[0]["resumed"] == notes[1]["resumed"]
        assert max(notes[0]["resumed"]) > 2
        dropout, again = tmp_path / f"{kind} dropout", tmp_path / f"{kind} again"
        assert files(again, "*.safetensors") == files(dropout, "*.safetensors")
        assert files(again, "*").keys() == files(two, "*").keys()
    assert 2 * read_json(tmp_path / "shared0.json")["held"] == read_json(tmp_path / "whole0.json")["held"]
    assert done.stderr.count("teacher: ") == done.stdout.count("adapter: ") == 6  # the main process alone speaks
    assert done.stdout.count("report: ") == 6


def check_targets(one: Path, two: Path, collected: list[list[int]]) -> None:
    """The same bytes, and each row is computed once."""
    targets = files(one, "targets/*/*")
    assert len(targets) > 6
    assert files(two, "targets/*/*") == targets
    assert all(collected)
    assert sum(map(sum, collected)) == SIZES["train"] + SIZES["unlabelled"] + SIZES["dev"]


def check_trainings(one: Path, two: Path) -> None:
    """Losses and weights are equal but for rounding."""
    for stage in ("ia2", "ia2-sft"):
        own, other = (folder / "adapters" / stage for folder in (one, two))
        log, again = (
            [line for of in read_json(path / "training.json")["trainings"] for line in of["log"]]
            for path in (own, other)
        )
        assert len(log) > 8
        check_log(log, again)
        check_weights(own, other)


def check_log(log: list[dict[str, float]], again: list[dict[str, float]]) -> None:
    for a, b in zip(log, again, strict=True):
        assert b == pytest.approx(a, rel=1e-4)


def check_weights(own: Path, other: Path) -> None:
    weights, others = (load_file(path / "adapter_model.safetensors") for path in (own, other))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-5)


def check_trainings_in_python(one: Path, two: Path) -> None:
    """As those of the command line; the same files."""
    log, again = (read_json(folder / "log.json") for folder in (one, two))
    assert len(log) > 8
    check_log(log, again)
    check_weights(one / "saved", two / "saved")
    assert files(two, "*").keys() == files(one, "*").keys()
    assert files(two, "_run/targets/*") == files(one, "_run/targets/*")


def check_answers(one: Path, two: Path) -> None:
    """What the teacher says of unlabelled queries, and the predictions, in their order."""
    assert files(two, "answered-*") == files(one, "answered-*")
    own, other = (read_jsonl(folder / "predictions.jsonl") for folder in (one, two))
    exact = ("variant", "query", "answer", "n_tokens")
    assert [[row[key] for key in exact] for row in own] == [[row[key] for key in exact] for row in other]
    for a, b in zip(own, other, strict=True):
        assert b["nll"] == pytest.approx(a["nll"], rel=1e-3)
        assert b["similarity"] == pytest.approx(a["similarity"], abs=1e-4)


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob(pattern) if path.is_file()}


@pytest.mark.parametrize("n_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_processes_share_every_batch_and_each_row_once(n_processes: int, batch_size: int) -> None:
    rows = Rows(
        [Tokens((i, i), 1, 1) for i in range(7)], Targets({"logits": [torch.full((1, 2), i) for i in range(7)]})
    )
    epoch = Epoch([Job({}, rows, None, TrainingSettings(1e-3, per_device_train_batch_size=batch_size))], n_processes)
    own = -(-batch_size // n_processes)  # rows of a process
    items = [item for [item] in (epoch[i] for i in range(len(epoch)))]
    steps = [items[i : i + own * n_processes] for i in range(0, len(items), own * n_processes)]
    counted = [[row.ids[0] for row, _ in step if row.n_response] for step in steps]
    assert [len(step) for step in counted] == [min(batch_size, 7 - i) for i in range(0, 7, batch_size)]
    assert sorted(i for step in counted for i in step) == list(range(7))
    assert n_processes == 1 or {len(step) for step in steps} == {own * n_processes}
    assert all(len(of["logits"]) == row.n_response for row, of in items)


@pytest.mark.parametrize("name", ["full", "prompt-tuning"])
def test_an_adapter_that_needs_whole_weights_says_so(lm: LanguageModel, name: str) -> None:
    lm.base._is_distributed_loading_by_transformers = True
    with pytest.raises(IA2Error, match=f"adapter '{name}' needs whole weights"), new_adapter(lm, name):
        pass


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartialState, "_shared_state", {})
    monkeypatch.setattr("accelerate.state.is_deepspeed_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(IA2Error, match="DeepSpeed is not available"):
        processes()


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_two_processes_with_deepspeed_end_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    one, two, three = (
        launch(f"--use_deepspeed --zero_stage {stage}", str(tmp_path), stage, DS_ACCELERATOR="cpu") for stage in "123"
    )
    assert "DeepSpeed's ZeRO stage 3 shares the weights" in three.stderr
    monkeypatch.setattr("sys.argv", [])
    train(tmp_path, "one")
    for stage, done in (("1", one), ("2", two)):
        assert done.returncode == 0, done.stderr[-4000:]
        assert files(tmp_path / f"zero{stage}", "targets/*/*") == files(tmp_path / "one", "targets/*/*")
        check_trainings(tmp_path / "one", tmp_path / f"zero{stage}")
        check_answers(tmp_path / "one", tmp_path / f"zero{stage}")


if __name__ == "__main__":
    folder, *stage = sys.argv[1:]
    program_of_deepspeed(Path(folder), *stage) if stage else program(Path(folder))
