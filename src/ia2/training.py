"""A stage of training: a `transformers.Trainer` whose loss is a sum of terms at response positions.

Several jobs that differ in learning rate, seed or rows are trained side by side, in one pass a step (`ia2.bank`).
"""

import math
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import accelerate.optimizer  # type: ignore[import-untyped]
import numpy as np
import torch
from accelerate.utils import patch_environment  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ia2.bank import Bank, restore, trainable_copy
from ia2.capture import Site, read
from ia2.checkpoints import CheckpointedTrainer, EverySoOften, load_results, save_results
from ia2.errors import IA2Error
from ia2.files import remove_together
from ia2.jobs import (
    Epoch,
    Item,
    Job,
    Record,
    Rows,
    TrainingResult,
    TrainingSettings,
    arguments,
    side_by_side,
    smaller,
)
from ia2.losses import LOSSES, Scale, ce
from ia2.memory import ran_out, tidy
from ia2.methods import Stage
from ia2.models import LanguageModel
from ia2.passes import TOKENS_PER_BATCH, batches
from ia2.processes import of_main
from ia2.progress import Advance, say, step
from ia2.prompt import IGNORED, TokenBatch


class NotFinite(ArithmeticError):  # noqa: N818
    """No job that is left has a finite loss."""


@dataclass(frozen=True)
class Fetched:
    """Rows of a batch, before they are collated."""

    items: Sequence[list[Item]]


class StageTrainer(CheckpointedTrainer):
    """Minimises a `Stage` for every job; each term is a mean over the positions of the job's update.

    A job that has run out of patience, or has no finite loss, is left out of later steps.
    """

    def __init__(self, lm: LanguageModel, stage: Stage, jobs: Sequence[Job], bank: Bank, args: TrainingArguments):
        self.epoch = Epoch(jobs, args.world_size)
        fetch: Any = Fetched
        args._n_gpu = min(args.n_gpu, 1)  # several GPUs are for `accelerate launch`: DataParallel copies the modules
        with patch_environment(ACCELERATE_USE_FSDP="false"):  # `load_model` has shared the weights already
            super().__init__(lm.model, args, fetch, train_dataset=self.epoch, eval_dataset=jobs[0].dev)
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise IA2Error("DeepSpeed's ZeRO stage 3 shares the weights, as only FSDP can here; choose stage 1 or 2")
        self.remove_callback(PrinterCallback)
        vars(self.accelerator)["free_memory"] = lambda: []  # it is new; looking for garbage takes as long as ten steps
        self.model_accepts_loss_kwargs = True  # so that the Trainer counts the positions of the whole update
        self.lm, self.stage, self.jobs, self.bank = lm, stage, jobs, bank
        self.settings, self.has_dev = jobs[0].settings, args.eval_strategy != "no"
        self.records = [Record() for _ in jobs]
        self.running = list(range(len(jobs)))
        self.began = time.perf_counter()
        self.layers = stage.selection(lm.anatomy).layers
        self.powers_GL = {
            site: torch.stack([job.train.power(site) for job in jobs]).to(lm.device)
            for site in stage.teacher_sites - {"logits"}
        }
        self._dev_batches: tuple[list[int], list[dict[str, Any]]] = [], []

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """One, with a group of weights for each learning rate; jobs of one stand together."""
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        options["weight_decay"] = self.args.weight_decay
        groups: list[dict[str, Any]] = []
        for rate, jobs in groupby(range(len(self.jobs)), lambda g: self.jobs[g].settings.learning_rate):
            first, *others = jobs
            groups.append({"params": self.bank.parameters(first, first + 1 + len(others)), "lr": rate})
        self.optimizer = kind(groups, **options)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.epoch)  # it is in order already

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: nobody asks."""
        return 0

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return grad_norm  # not measured unless it is clipped

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Collated when they are wanted: a batch is fetched ahead, when it is not known which jobs will be running."""
        batches = [self.collate(fetched.items) for fetched in islice(epoch_iterator, num_batches)]
        return batches, self._get_num_items_in_batch(batches, device)

    def collate(self, items: Sequence[list[Item]]) -> dict[str, Any]:
        """A batch of the jobs that are running."""
        return self._collated(self.running, [[item[g] for item in items] for g in self.running])

    def _collated(self, jobs: Sequence[int], rows_of_jobs: Sequence[Sequence[Item]]) -> dict[str, Any]:
        """As the Trainer moves it to the device: the `TokenBatch` by its fields, the teacher's values, whose rows.

        The rows are slices of equal length, one a job; `sizes` are each slice's positions: of the response, aligned.
        """
        items = [item for rows in rows_of_jobs for item in rows]
        batch = self.lm.encoder.collate([row for row, _ in items], self.stage.positions)
        targets = {site: torch.cat([of[site] for _, of in items]) for site in self.stage.teacher_sites}
        counts_GB2 = torch.stack([batch.response_mask.sum(1), batch.aligned_mask.sum(1)], -1).unflatten(
            0, (len(jobs), -1)
        )
        sizes = tuple((of[0], of[1]) for of in counts_GB2.sum(1).tolist())
        return {**vars(batch), "targets": targets, "jobs": tuple(jobs), "sizes": sizes}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Positions of each job's whole update, over all processes: of responses, and those aligned. (G, 2)"""
        counts_G2 = torch.zeros(len(self.jobs), 2, device=device)
        for batch in batch_samples:
            counts_G2[list(batch["jobs"])] += torch.tensor(batch["sizes"], device=device)
        return self.accelerator.gather(counts_G2[None]).sum(0) if self.args.world_size > 1 else counts_G2

    def summed_losses(self, student: dict[Site, Tensor], inputs: dict[str, Any]) -> Tensor:
        """The terms summed over each job's positions, in float32: at the logits, and of activations. (G, 2)"""
        ids_P = inputs["labels"][inputs["labels"] != IGNORED]
        columns = [torch.zeros(len(inputs["jobs"]), device=ids_P.device)] * 2
        for term in self.stage.terms:
            column = int(term.site != "logits")
            sizes = [of[column] for of in inputs["sizes"]]
            wanted = inputs["targets"][term.site] if term.needs_teacher else ids_P
            loss_P = LOSSES[term.loss](student[term.site], wanted, self._scale(term.site, inputs["jobs"], sizes))
            columns[column] = columns[column] + term.weight * _sums(loss_P, sizes)
        return torch.stack(columns, -1)

    def _scale(self, site: Site, jobs: Sequence[int], sizes: list[int]) -> Scale:
        if site not in self.powers_GL:
            return Scale(torch.empty(0), self.stage.temperature, self.stage.top_k)
        power_GL = self.powers_GL[site][list(jobs)]
        repeats = torch.tensor(sizes, device=power_GL.device)
        power_PL = power_GL.repeat_interleave(repeats, 0, output_size=sum(sizes))
        return Scale(power_PL, self.stage.temperature, self.stage.top_k)

    def _read(self, model: nn.Module, inputs: dict[str, Any], sites: Collection[Site]) -> dict[Site, Tensor]:
        self.bank.active = inputs["jobs"]
        batch = TokenBatch(**{of.name: inputs[of.name] for of in fields(TokenBatch)})
        return read(model, self.lm.anatomy, batch, sites, self.layers)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum over jobs of the micro-batch's share of the mean over all positions of the job's update."""
        if not isinstance(num_items_in_batch, Tensor):
            raise RuntimeError("the Trainer did not count the positions of the update")
        sums_G2 = self.summed_losses(self._read(model, inputs, self.stage.sites), inputs)
        losses_G = (sums_G2 / num_items_in_batch[list(inputs["jobs"])]).sum(1)
        of_all_G = self.accelerator.reduce(losses_G.detach())
        if not losses_G.requires_grad:
            raise IA2Error(
                "the loss does not depend on what is trained: the layers that are aligned lie below the adapter's, "
                "or activation checkpointing is reentrant (use_reentrant=False is needed)"
            )
        finite = []
        for i, (g, value) in enumerate(zip(inputs["jobs"], of_all_G.tolist(), strict=True)):
            self.records[g].loss += value
            if math.isfinite(value):
                finite.append(i)
            elif g in self.running:
                self.records[g].stopped = f"no finite loss at step {self.state.global_step + 1}"
                self.running.remove(g)
        if not self.running:
            raise NotFinite
        loss = losses_G[finite].sum() * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Look at the development rows of the jobs that are running: keep weights that are the best so far.

        Outside of training, of all jobs, and nothing is kept.

        Returns:
            The mean over these jobs of `eval_loss`, the stage's own, and of `eval_value`, by the metric, lower is
            better.

        Raises:
            IA2Error: there are no development rows, or others are given.
        """
        if self.jobs[0].dev is None or eval_dataset is not None:
            raise IA2Error("rows to evaluate on are those of the eval_dataset that the trainer is made with; give it")
        if not self.is_in_train:
            self.running = list(range(len(self.jobs)))
        values = self.dev_values()
        if self.is_in_train:
            self._keep_best(values)
        means = np.mean(list(values.values()), axis=0)
        metrics = {"eval_loss": float(means[0]), "eval_value": float(means[1])}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _keep_best(self, values: Mapping[int, tuple[float, float]]) -> None:
        for g, (loss, value) in values.items():
            record, step = self.records[g], self.state.global_step
            record.log.append({"step": step, "eval_loss": loss, "eval_value": value})
            self.track({f"eval_{self.jobs[g].name}/loss": loss, f"eval_{self.jobs[g].name}/value": value})
            if value < record.value:
                record.value, record.step, record.n_bad, record.weights = value, step, 0, self.bank.copy(g)
                record.dev_loss = loss
            else:
                record.n_bad += 1
        self.snapshot([g for g in self.running if self.records[g].n_bad >= self.settings.early_stopping_patience])
        self.running = [g for g in self.running if self.records[g].n_bad < self.settings.early_stopping_patience]
        self.control.should_training_stop |= not self.running

    def snapshot(self, jobs: Sequence[int]) -> None:
        """Keep the weights of these as they are now, if any are to be kept."""
        for g in jobs if self.settings.snapshots else ():
            copied = self.bank.copy(g)
            self.records[g].snapshots[self.state.global_step] = {name: w.cpu() for name, w in copied.items()}

    def track(self, values: dict[str, float]) -> None:
        """Send values to the trackers, if there are any."""
        if self.settings.report_to:
            self.log(values)

    @torch.no_grad()
    def dev_values(self) -> dict[int, tuple[float, float]]:
        """The stage's loss over the development rows, and the value by the metric, of every running job.

        Each process reads its share of the rows.
        """
        model: nn.Module = self.model_wrapped
        model.eval()
        metric, jobs = self.settings.metric_for_best_model, list(self.running)
        if self._dev_batches[0] != jobs:
            self._dev_batches = jobs, list(self._collated_dev(jobs))
        sites = self.stage.sites if metric == "loss" else {*self.stage.sites, "logits"}
        sums_G2, counts_G2, others_G = torch.zeros(len(jobs), 2), torch.zeros(len(jobs), 2), torch.zeros(len(jobs))
        for batch in self._dev_batches[1]:
            student = self._read(model, batch, sites)
            sums_G2 += self.summed_losses(student, batch).cpu()
            counts_G2 += torch.tensor(batch["sizes"])
            ids_P, sizes = batch["labels"][batch["labels"] != IGNORED], [of[0] for of in batch["sizes"]]
            if metric == "nll":
                others_G += _sums(ce(student["logits"], ids_P, self._scale("logits", jobs, sizes)), sizes).cpu()
            elif metric == "accuracy":
                others_G -= _sums((student["logits"].argmax(-1) == ids_P).float(), sizes).cpu()
        sums = torch.cat([sums_G2, counts_G2, others_G[:, None]], 1).to(self.args.device)
        sums_G2, counts_G2, others_G = self.accelerator.reduce(sums).cpu().tensor_split((2, 4), dim=1)
        losses_G = (sums_G2 / counts_G2).sum(1)
        values_G = losses_G if metric == "loss" else others_G[:, 0] / counts_G2[:, 0]
        return dict(zip(jobs, zip(losses_G.tolist(), values_G.tolist(), strict=True), strict=True))

    def _collated_dev(self, jobs: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Batches of all development rows, the longest of every job first."""
        sorted_rows = [
            sorted(rows.items, key=lambda item: -item[0].n_inputs) for g in jobs if (rows := self.jobs[g].dev)
        ]
        by_rank = zip(*([row for row, _ in rows] for rows in sorted_rows), strict=True)
        longest = [max(same, key=lambda row: row.n_inputs) for same in by_rank]
        n, own = self.args.world_size, self.args.process_index
        for chosen in batches(longest, n * TOKENS_PER_BATCH // len(jobs) // self.args.gradient_accumulation_steps):
            parts = [[rows[i] for i in chosen[own::n]] for rows in sorted_rows]
            nothing = [[of.nothing] for g in jobs if (of := self.jobs[g].dev)]
            yield self._prepare_inputs(self._collated(jobs, parts if parts[0] else nothing))


def _sums(values_P: Tensor, sizes: Sequence[int]) -> Tensor:
    """Of consecutive parts of these sizes. (G,)"""
    return torch.stack([part.sum() for part in values_P.split(list(sizes))])


class Steps(TrainerCallback):
    """What happens around every update: orders are drawn, losses noted, a bar advances.

    Without development rows the weights before each update are kept, whose loss was finite, or none would come.
    """

    def __init__(self, trainer: StageTrainer, advance: Advance = lambda *_: None):
        self.trainer, self.advance, self.score = trainer, advance, ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From a checkpoint, if there is one."""
        self.advance(state.global_step)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Epochs count from 0."""
        self.trainer.epoch.begin(int(state.epoch or 0))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember what to show."""
        self.score = f", dev {self.trainer.settings.metric_for_best_model} {abs(kwargs['metrics']['eval_value']):.3g}"

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep snapshots, of those that are running."""
        if (every := self.trainer.settings.snapshots) and state.global_step % every == 0:
            self.trainer.snapshot(self.trainer.running)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """And of the last step; those that ended before have theirs."""
        self.trainer.snapshot(self.trainer.running)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Copy."""
        if not self.trainer.has_dev:
            for g in self.trainer.running:
                self.trainer.records[g].step = state.global_step
                self.trainer.records[g].weights = self.trainer.bank.copy(g)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One update is done."""
        loss = np.mean([self.trainer.records[g].loss for g in self.trainer.running])
        for g in self.trainer.running:
            record = self.trainer.records[g]
            record.log.append({"step": state.global_step, "loss": record.loss})
            self.trainer.track({f"{self.trainer.jobs[g].name}/loss": record.loss})
            record.loss = 0.0
        self.trainer.bank.clear_gradients()
        self.advance(1, f"loss {loss:.3g}{self.score}")


@contextmanager
def without_walks(model: nn.Module) -> Iterator[None]:
    """Within the block, setting a mode that is set costs nothing, and clearing gradients is left to the bank.

    The Trainer does both at every step, module by module, which takes a fifth of the step of a small model. And
    accelerate looks through the disk, at every step, for an optimiser that is not used: a twentieth.
    """
    own = {"train": lambda mode=True: model if model.training == mode else type(model).train(model, mode)}
    vars(model).update(own, zero_grad=lambda set_to_none=True: None)
    asks = accelerate.optimizer.is_lomo_available
    accelerate.optimizer.is_lomo_available = lambda: False
    try:
        yield
    finally:
        accelerate.optimizer.is_lomo_available = asks
        del vars(model)["train"], vars(model)["zero_grad"]


def train_jobs(
    lm: LanguageModel,
    stage: Stage,
    jobs: Sequence[Job],
    name: str = "training",
    together: bool = True,
    folder: Path | None = None,
) -> list[TrainingResult]:
    """Train the adapter of `lm` once for each job; side by side, where they can be and may be (`together`).

    Each ends with its best weights by development rows, or the last without any. The weights before the first update
    count among the candidates. The loss of the restored weights is measured again and must be theirs: a restore that
    does nothing is an error. Where a job's loss stops being finite it ends, says so, and has its best weights, or
    the last ones with a finite loss; the others go on.

    With a `folder`, which is to be of this very call, an interrupted one made again goes on from what it kept there.
    """
    found: dict[int, TrainingResult] = {}
    parts = list(side_by_side(lm, jobs)) if together else [[i] for i in range(len(jobs))]
    for part in parts:
        kept = folder / f"{part[0]}.safetensors" if folder and len(parts) > 1 else None
        if kept and kept.is_file():
            results = load_results(kept)
        else:
            results = _fitting(lm, stage, [jobs[i] for i in part], name, folder / str(part[0]) if folder else None)
        if kept:
            save_results(kept, results)
            remove_together(kept.with_suffix(""))
        found |= dict(zip(part, results, strict=True))
    return [found[i] for i in range(len(jobs))]


def _fitting(
    lm: LanguageModel, stage: Stage, jobs: Sequence[Job], name: str, folder: Path | None
) -> list[TrainingResult]:
    """Train side by side; where memory runs out, fewer at once, then with fewer rows in a pass."""
    try:
        return _train(lm, stage, jobs, name, folder)
    except RuntimeError as error:
        if not ran_out(error) or not (parts := smaller(jobs, name)):
            raise
    tidy()
    places = [folder and folder / str(k) for k in range(len(parts))] if len(parts) > 1 else [folder]
    return [r for part, place in zip(parts, places, strict=True) for r in _fitting(lm, stage, part, name, place)]


def _train(
    lm: LanguageModel, stage: Stage, jobs: Sequence[Job], name: str, folder: Path | None
) -> list[TrainingResult]:
    settings = jobs[0].settings
    n_epoch = -(-len(jobs[0].train) // (settings.per_device_train_batch_size * settings.gradient_accumulation_steps))
    bank = Bank(lm.model, [job.start for job in jobs])
    with tempfile.TemporaryDirectory() as temporary, step(name, n_epoch * settings.num_train_epochs) as advance:
        args = arguments(settings, folder or Path(temporary), jobs[0].dev is not None)
        trainer = StageTrainer(lm, stage, jobs, bank, args)
        trainer.add_callback(Steps(trainer, advance))
        if folder and not trainer.is_deepspeed_enabled:
            trainer.add_callback(EverySoOften())
        if last := of_main(trainer.is_world_process_zero() and get_last_checkpoint(args.output_dir)):
            say(f"{name}: goes on from {Path(last).name}")
        with bank.attached(), without_walks(lm.model):
            with suppress(NotFinite):  # every job says why it stopped
                trainer.train(last)
            restore_best(trainer, name)
    seconds = (time.perf_counter() - trainer.began) / len(jobs)
    return [
        TrainingResult(
            weights=bank.copy(g),
            value=record.value if trainer.has_dev else None,
            n_steps=record.step if trainer.has_dev or record.stopped else trainer.state.global_step,
            stopped=record.stopped,
            log=record.log,
            n_jobs=len(jobs),
            seconds=seconds,
            snapshots=record.snapshots,
        )
        for g, record in enumerate(trainer.records)
    ]


def restore_best(trainer: StageTrainer, name: str) -> None:
    """Put the best weights of every job back, and measure them again; says which jobs stopped, and why.

    Raises:
        IA2Error: the loss of a job was never finite.
    """
    for g, record in enumerate(trainer.records):
        if record.stopped:
            rate = trainer.jobs[g].settings.learning_rate
            record.stopped += f", learning rate {rate:g}; the weights of step {record.step} are kept"
            say(f"{name}: {record.stopped}")
        if not record.weights:
            raise IA2Error(f"{name}: the loss is not finite from the start; is the base model in float16?")
        if record.stopped or trainer.has_dev:
            trainer.bank.restore(g, record.weights)
    if trainer.has_dev:
        tolerance = 1e-4 if trainer.lm.base.dtype == torch.float32 else 2e-2  # beside other jobs, others are rounded
        trainer.running = list(range(len(trainer.jobs)))
        for g, (again, _) in trainer.dev_values().items():  # the loss, for accuracy jumps where two tokens are near
            best = trainer.records[g].dev_loss
            if abs(again - best) > tolerance * max(1.0, abs(best)):
                raise RuntimeError(f"{name}: restored weights have the loss {again}, the best ones had {best}")


def train_stage(
    lm: LanguageModel,
    stage: Stage,
    train: Rows,
    dev: Rows | None,
    settings: TrainingSettings,
    name: str = "training",
) -> TrainingResult:
    """Train the adapter of `lm` in place; see `train_jobs`."""
    result = train_jobs(lm, stage, [Job(trainable_copy(lm.model), train, dev, settings)], name)[0]
    restore(lm.model, result.weights)
    return result
