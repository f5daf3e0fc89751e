"""A training that was interrupted goes on from its last checkpoint and ends with the same bits; no pickle."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ia2.bank import Bank, Weights
from ia2.files import damaged, read_json, sha256, written_aside
from ia2.jobs import Record, TrainingResult
from ia2.processes import of_each, of_main

CHECKPOINT_SECONDS = 120.0
TENSORS, STATE = "state.safetensors", "state.json"


class CheckpointedTrainer(Trainer):
    """A Trainer of a bank whose checkpoints hold all that decides how it goes on, as safetensors and JSON.

    That is, beside the Trainer's own state: the weights of every job, Adam's moments, what is known of every job and
    which still run, and the random states of every process; the order of rows follows from seed and epoch. Of several
    processes the main one writes, and all read.
    """

    optimizer: torch.optim.Optimizer
    lr_scheduler: Any
    bank: Bank
    records: list[Record]
    running: list[int]
    began: float

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        if not self.running:
            return  # it ends here
        folder = Path(str(self.args.output_dir))
        with written_aside(folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}") as aside:
            aside.mkdir()
            save_file({name: tensor.contiguous() for name, tensor in self._tensors()}, aside / TENSORS)
            self.state.save_to_json(str(aside / TRAINER_STATE_NAME))
            state = {
                "records": [_without_tensors(record) for record in self.records],
                "running": self.running,
                "scheduler": self.lr_scheduler.state_dict(),
                "seconds": time.perf_counter() - self.began,
                "sha256": {name: sha256(aside / name) for name in (TENSORS, TRAINER_STATE_NAME)},
            }
            (aside / STATE).write_text(json.dumps(state))
        if self.is_world_process_zero():
            rotate_checkpoints(str(folder), self.args.save_total_limit)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for g, record in enumerate(self.records):
            yield from _named(f"weights/{g}/", self.bank.weights[g])
            yield from _named(f"best/{g}/", record.weights)
            for step, weights in record.snapshots.items():
                yield from _named(f"snapshots/{g}/{step}/", weights)
        for i, moments in self.optimizer.state_dict()["state"].items():
            yield from _named(f"optimizer/{i}/", moments)
        states = {name: module.get_rng_state() for name, module in self._random().items()}
        for process, own in enumerate(of_each(states)):
            yield from _named(f"random/{process}/", own)

    def _random(self) -> dict[str, Any]:
        kind = self.args.device.type
        return {"cpu": torch.random} | ({} if kind == "cpu" else {kind: torch.get_device_module(kind)})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        state = read_json(folder / STATE, folder)
        for name, digest in state["sha256"].items():
            if not (folder / name).is_file() or sha256(folder / name) != digest:
                raise damaged(folder / name, "its checksum is another", folder)
        for g, record in enumerate(state["records"]):
            self.bank.restore(g, _part(folder / TENSORS, f"weights/{g}/"))
            best, snapshots = _part(folder / TENSORS, f"best/{g}/"), _snapshots(folder / TENSORS, f"snapshots/{g}/")
            self.records[g] = Record(best, snapshots=snapshots, **record)
        self.running = state["running"]
        self.began -= state["seconds"]
        self.args.eval_on_start = False

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        folder = Path(str(checkpoint))
        own = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(folder / TENSORS, "optimizer/").items():
            i, kind = name.split("/")
            moments.setdefault(int(i), {})[kind] = tensor
        self.optimizer.load_state_dict(own | {"state": moments})
        self.lr_scheduler.load_state_dict(read_json(folder / STATE)["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _load_rng_state(self, checkpoint: str | None) -> None:
        states = _part(Path(str(checkpoint)) / TENSORS, f"random/{self.args.process_index}/")
        for name, module in self._random().items():
            module.set_rng_state(states[name])


class EverySoOften(TrainerCallback):
    """Asks for a checkpoint where the last one, or the beginning, is `CHECKPOINT_SECONDS` ago on the main process."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask."""
        control.should_save |= of_main(time.monotonic() - self.last >= CHECKPOINT_SECONDS)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """It is there."""
        self.last = time.monotonic()


def save_results(path: Path, results: Sequence[TrainingResult]) -> None:
    """Keep what became of trainings while others go on."""
    tensors: dict[str, Tensor] = {}
    for g, result in enumerate(results):
        tensors |= _named(f"{g}/weights/", result.weights)
        for step, weights in result.snapshots.items():
            tensors |= _named(f"{g}/snapshots/{step}/", weights)
    with written_aside(path) as aside:
        save_file(tensors, aside, {"results": json.dumps([_without_tensors(result) for result in results])})


def load_results(path: Path) -> list[TrainingResult]:
    """What `save_results` kept.

    Raises:
        IA2Error: the file was cut off.
    """
    try:
        with safe_open(path, "pt") as file:
            others = json.loads(file.metadata()["results"])
    except SafetensorError as error:
        raise damaged(path, error) from None
    return [
        TrainingResult(_part(path, f"{g}/weights/"), snapshots=_snapshots(path, f"{g}/snapshots/"), **of)
        for g, of in enumerate(others)
    ]


def _without_tensors(record: Record | TrainingResult) -> dict[str, Any]:
    return {name: of for name, of in vars(record).items() if name not in ("weights", "snapshots")}


def _snapshots(path: Path, prefix: str) -> dict[int, Weights]:
    found: dict[int, Weights] = {}
    for name, tensor in _part(path, prefix).items():
        step, _, weight = name.partition("/")
        found.setdefault(int(step), {})[weight] = tensor
    return found


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((prefix + name, tensor) for name, tensor in tensors.items())


def _part(path: Path, prefix: str) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is no mapping
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
