"""One stage of training: a `transformers.Trainer` whose loss is a sum of terms at response positions."""

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ia2.capture import Site, read
from ia2.errors import IA2Error
from ia2.losses import LOSSES, Scale, ce, mean_square
from ia2.methods import Stage
from ia2.models import LanguageModel
from ia2.passes import batches
from ia2.progress import say, step
from ia2.prompt import IGNORED, TokenBatch, Tokens
from ia2.targets import Targets

Item = tuple[Tokens, dict[Site, Tensor]]
Metric = Literal["loss", "nll", "accuracy"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class TrainingSettings:
    """Of one stage, named as transformers names them; the defaults are the paper's.

    Attributes:
        learning_rate: of Adam, constant.
        num_train_epochs: at most so many.
        per_device_train_batch_size: rows a step and device; the effective batch is this times accumulation.
        gradient_accumulation_steps: micro-batches an update; changes memory, not results.
        eval_steps: updates between two looks at the development rows.
        early_stopping_patience: looks without a better value before stopping.
        metric_for_best_model: what is looked at: the stage's own `loss`, the `nll` of the responses, or the `accuracy`
            of their tokens.
        seed: of the order of rows.
    """

    learning_rate: float
    num_train_epochs: int = 50
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    eval_steps: int = 2
    early_stopping_patience: int = 5
    metric_for_best_model: Metric = "loss"
    seed: int = 0


@dataclass(frozen=True)
class TrainingResult:
    """What became of one training.

    Attributes:
        value: of the weights kept, by the settings' metric, lower is better (accuracy is negated); None without
            development rows.
        n_steps: the step at which they were reached.
        stopped: why training was cut short, if it was.
        log: what the Trainer logged.
    """

    value: float | None
    n_steps: int
    stopped: str | None
    log: list[dict[str, float]]


class Rows(Dataset[Item]):
    """Student rows, each with the teacher's values; `renew(epoch)`, if given, yields other values for a later epoch."""

    def __init__(self, rows: Sequence[Tokens], targets: Targets, renew: Callable[[int], Targets] | None = None):
        self.rows, self.renew = list(rows), renew
        self.items = self._items(targets)

    def _items(self, targets: Targets) -> list[Item]:
        return [(row, {site: values[i] for site, values in targets.values.items()}) for i, row in enumerate(self.rows)]

    def begin(self, epoch: int) -> None:
        """Called before every epoch; epoch 0 has the values given."""
        if self.renew:
            self.items = self._items(self.renew(epoch))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Item:
        return self.items[i]

    def power(self, site: Site) -> Tensor:
        """The teacher's mean square activation per layer over all rows, (L,)."""
        return mean_square(torch.cat([targets[site] for _, targets in self.items]))


class NotFinite(ArithmeticError):  # noqa: N818
    """The loss is infinite or not a number."""


class StageTrainer(Trainer):
    """Minimises a `Stage`: each term is a mean over positions; batch size, padding, accumulation do not change it."""

    def __init__(
        self,
        lm: LanguageModel,
        stage: Stage,
        train: Rows,
        dev: Rows | None,
        args: TrainingArguments,
        metric: Metric = "loss",
    ):
        super().__init__(model=lm.model, args=args, train_dataset=train, eval_dataset=dev, data_collator=self.collate)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # so that the Trainer counts the positions of the whole update
        self.lm, self.stage, self.metric = lm, stage, metric
        self.layers = stage.selection(lm.anatomy).layers
        power = {site: train.power(site).to(lm.device) for site in stage.teacher_sites - {"logits"}}
        power["logits"] = torch.empty(0)
        self.scales = {site: Scale(power_L, stage.temperature, stage.top_k) for site, power_L in power.items()}
        self.dev_batches = list(self._prepared(dev)) if dev else []

    def collate(self, items: Sequence[Item]) -> dict[str, Any]:
        """A batch as the Trainer moves it to the device: the `TokenBatch` by its fields, and the teacher's values."""
        batch = self.lm.encoder.collate([row for row, _ in items], self.stage.positions)
        sites = self.stage.teacher_sites
        return {**vars(batch), "targets": {site: torch.cat([targets[site] for _, targets in items]) for site in sites}}

    def _prepared(self, rows: Rows) -> Iterator[dict[str, Any]]:
        for chosen in batches([row for row, _ in rows.items]):
            yield self._prepare_inputs(self.collate([rows[i] for i in chosen]))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Positions of the whole update, over all processes: of responses, and those aligned. (2,)"""
        counts = sum((_counts(batch).to(device) for batch in batch_samples), torch.zeros(2, device=device))
        return self.accelerator.gather(counts[None]).sum(0) if self.args.world_size > 1 else counts

    def summed_losses(self, student: dict[Site, Tensor], inputs: dict[str, Any]) -> Tensor:
        """The terms summed over the batch's positions, in float32: at the logits, and of activations. (2,)"""
        ids_P = inputs["labels"][inputs["labels"] != IGNORED]
        sums = [torch.zeros((), device=ids_P.device)] * 2
        for term in self.stage.terms:
            wanted = inputs["targets"][term.site] if term.needs_teacher else ids_P
            loss = LOSSES[term.loss](student[term.site], wanted, self.scales[term.site]).sum()
            sums[term.site != "logits"] = sums[term.site != "logits"] + term.weight * loss
        return torch.stack(sums)

    def _read(self, model: nn.Module, inputs: dict[str, Any], sites: Collection[Site]) -> dict[Site, Tensor]:
        batch = TokenBatch(**{field.name: inputs[field.name] for field in fields(TokenBatch)})
        return read(model, self.lm.anatomy, batch, sites, self.layers)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the mean over all positions of the update."""
        if not isinstance(num_items_in_batch, Tensor):
            raise RuntimeError("the Trainer did not count the positions of the update")
        sums = self.summed_losses(self._read(model, inputs, self.stage.sites), inputs)
        loss = (sums / num_items_in_batch).sum()
        if not torch.isfinite(loss):
            raise NotFinite
        if not loss.requires_grad:
            raise IA2Error(
                "the loss does not depend on what is trained: the layers that are aligned lie below the adapter's, "
                "or activation checkpointing is reentrant (use_reentrant=False is needed)"
            )
        loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Over all development rows: `eval_loss`, the stage's own, and `eval_value`, by the metric, lower is better."""
        model: nn.Module = self.model_wrapped
        model.eval()
        sites = self.stage.sites if self.metric == "loss" else {*self.stage.sites, "logits"}
        sums, counts, other = torch.zeros(2), torch.zeros(2), 0.0
        for batch in self.dev_batches:
            student = self._read(model, batch, sites)
            sums, counts = sums + self.summed_losses(student, batch).cpu(), counts + _counts(batch).cpu()
            ids_P = batch["labels"][batch["labels"] != IGNORED]
            if self.metric == "nll":
                other += ce(student["logits"], ids_P, self.scales["logits"]).sum().item()
            elif self.metric == "accuracy":
                other -= (student["logits"].argmax(-1) == ids_P).sum().item()
        loss = (sums / counts).sum().item()
        metrics = {"eval_loss": loss, "eval_value": loss if self.metric == "loss" else other / counts[0].item()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _counts(inputs: dict[str, Any]) -> Tensor:
    """Positions of responses, and those aligned. (2,)"""
    return torch.stack([(inputs["labels"] != IGNORED).sum(), inputs["aligned_mask"].sum()]).float()


class KeepBest(TrainerCallback):
    """Copies the trainable weights whenever the development value is the best so far; stops when patience is out."""

    def __init__(self, patience: int):
        self.patience, self.n_bad = patience, 0
        self.value, self.step = float("inf"), 0
        self.weights: dict[str, Tensor] = {}

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Compare, copy, count."""
        value = kwargs["metrics"]["eval_value"]
        if value < self.value:
            self.value, self.step, self.n_bad = value, state.global_step, 0
            self.weights = trainable_copy(kwargs["model"])
            return
        self.n_bad += 1
        control.should_training_stop |= self.n_bad >= self.patience


class KeepGood(TrainerCallback):
    """Without development rows: copies the weights before each update, whose loss was finite, or none would come."""

    def __init__(self) -> None:
        self.step = 0
        self.weights: dict[str, Tensor] = {}

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Copy."""
        self.step, self.weights = state.global_step, trainable_copy(kwargs["model"])


class BeginEpoch(TrainerCallback):
    """Tells the training rows that an epoch begins."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Epochs count from 0."""
        self.rows.begin(round(state.epoch or 0))


class ShowProgress(TrainerCallback):
    """Advances a bar with every update; shows the development loss."""

    def __init__(self, advance: Any):
        self.advance, self.note = advance, ""

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember what to show."""
        self.note = f"development loss {kwargs['metrics']['eval_loss']:.4g}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One update is done."""
        self.advance(1, self.note)


def trainable_copy(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the trainable weights by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put a copy back, every tensor of it."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if parameters.keys() != weights.keys():
        raise RuntimeError("the weights kept are not those of this model")
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def train_stage(
    lm: LanguageModel,
    stage: Stage,
    train: Rows,
    dev: Rows | None,
    settings: TrainingSettings,
    name: str = "training",
) -> TrainingResult:
    """Train the adapter of `lm` in place; it ends with its best weights by development rows, or the last without any.

    The weights before the first update count among the candidates. The value of the restored weights is measured again
    and must be the best one: a restore that does nothing is an error. Where the loss stops being finite, training
    stops, says so, and the best weights, or the last ones with a finite loss, are restored.
    """
    n_epoch = -(-len(train) // (settings.per_device_train_batch_size * settings.gradient_accumulation_steps))
    with tempfile.TemporaryDirectory() as folder, step(name, n_epoch * settings.num_train_epochs) as advance:
        args = arguments(settings, Path(folder), bool(dev))
        trainer = StageTrainer(lm, stage, train, dev, args, settings.metric_for_best_model)
        kept = KeepBest(settings.early_stopping_patience) if dev else KeepGood()
        for callback in (ShowProgress(advance), kept, BeginEpoch(train)):
            trainer.add_callback(callback)
        stopped = None
        try:
            trainer.train()
        except NotFinite:
            rate, at = settings.learning_rate, trainer.state.global_step
            stopped = (
                f"no finite loss at step {at + 1}, learning rate {rate:g}; the weights of step {kept.step} are kept"
            )
            say(f"{name}: {stopped}")
        if not kept.weights:
            raise IA2Error(f"{name}: the loss is not finite from the start; is the base model in float16?")
        log = [dict(entry) for entry in trainer.state.log_history]
        if isinstance(kept, KeepGood):
            if stopped:
                restore(lm.model, kept.weights)
            return TrainingResult(None, kept.step if stopped else trainer.state.global_step, stopped, log)
        restore(lm.model, kept.weights)
        again = trainer.evaluate()["eval_value"]
        if abs(again - kept.value) > 1e-6 * max(1.0, abs(kept.value)):
            raise RuntimeError(f"{name}: restored weights have the value {again}, the best ones had {kept.value}")
        return TrainingResult(kept.value, kept.step, stopped, log)


def train_best(
    lm: LanguageModel,
    stage: Stage,
    train: Rows,
    dev: Rows | None,
    settings: Sequence[TrainingSettings],
    name: str = "training",
) -> dict[str, Any]:
    """Train once with each of several settings, all from the same weights; keep the best by development rows.

    Returns:
        A record for JSON: the learning rate chosen, its value and steps, all trainings with their logs, the seconds.
    """
    start = time.perf_counter()
    initial = trainable_copy(lm.model)
    results: list[TrainingResult] = []
    best, weights = 0, initial
    for i, choice in enumerate(settings):
        restore(lm.model, initial)
        title = f"{name}, learning rate {choice.learning_rate:g}"
        results.append(train_stage(lm, stage, train, dev, choice, title))
        if i == 0 or (results[i].value or 0.0) < (results[best].value or 0.0):
            best, weights = i, trainable_copy(lm.model)
    restore(lm.model, weights)
    return {
        "learning_rate": settings[best].learning_rate,
        "value": results[best].value,
        "n_steps": results[best].n_steps,
        "seconds": time.perf_counter() - start,
        "trainings": [asdict(choice) | asdict(result) for choice, result in zip(settings, results, strict=True)],
    }


def arguments(settings: TrainingSettings, folder: Path, has_dev: bool) -> TrainingArguments:
    """Adam with a constant learning rate, no weight decay, no clipping (paper, settings)."""
    return TrainingArguments(
        output_dir=str(folder),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.num_train_epochs,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        eval_strategy="steps" if has_dev else "no",
        eval_steps=settings.eval_steps,
        eval_on_start=has_dev,
        logging_steps=settings.eval_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
    )
