"""One stage of training: a `transformers.Trainer` whose loss is a sum of terms at response positions."""

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ia2.capture import Site, batches, read
from ia2.losses import LOSSES, mean_square
from ia2.methods import Stage
from ia2.models import LanguageModel
from ia2.progress import step
from ia2.prompt import Encoder, TokenBatch, Tokens
from ia2.targets import Targets

Item = tuple[Tokens, dict[Site, Tensor]]


@dataclass(frozen=True)
class TrainingSettings:
    """Of one stage, named as transformers names them; the defaults are the paper's.

    Attributes:
        learning_rate: of Adam, constant.
        num_train_epochs: at most so many.
        per_device_train_batch_size: rows a step and device; the effective batch is this times accumulation.
        gradient_accumulation_steps: micro-batches an update; changes memory, not results.
        eval_steps: updates between two looks at the development loss.
        early_stopping_patience: looks without a better development loss before stopping.
        seed: of the order of rows.
    """

    learning_rate: float
    num_train_epochs: int = 50
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    eval_steps: int = 2
    early_stopping_patience: int = 5
    seed: int = 0


@dataclass(frozen=True)
class TrainingResult:
    """`loss` is the development loss of the weights kept (None without development rows), reached at `n_steps`."""

    loss: float | None
    n_steps: int
    log: list[dict[str, float]]


class Rows(Dataset[Item]):
    """Student rows, each with the teacher's values at its response positions."""

    def __init__(self, rows: Sequence[Tokens], targets: Targets):
        self.items: list[Item] = [
            (row, {site: values[i] for site, values in targets.values.items()}) for i, row in enumerate(rows)
        ]

    def joined(self, other: "Rows") -> "Rows":
        """These rows, then those."""
        both = Rows((), Targets({}))
        both.items = self.items + other.items
        return both

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Item:
        return self.items[i]

    def power(self) -> Tensor:
        """The teacher's mean square activation per layer over all rows, (L,)."""
        return mean_square(torch.cat([targets["attn_out"] for _, targets in self.items]))


def collate(encoder: Encoder, items: Sequence[Item], sites: Iterable[Site]) -> dict[str, Any]:
    """A batch as the Trainer moves it to the device: the `TokenBatch` by its fields, and `targets` of these sites."""
    return {
        **vars(encoder.collate([row for row, _ in items])),
        "targets": {site: torch.cat([targets[site] for _, targets in items]) for site in sites},
    }


class StageTrainer(Trainer):
    """Minimises a `Stage`: a mean over response tokens that batch size, padding and accumulation do not change."""

    def __init__(self, lm: LanguageModel, stage: Stage, train: Rows, dev: Rows | None, args: TrainingArguments):
        super().__init__(
            model=lm.model,
            args=args,
            train_dataset=train,
            eval_dataset=dev,
            data_collator=lambda items: collate(lm.encoder, items, stage.teacher_sites),
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # so that the Trainer counts the tokens of the whole update
        self.anatomy, self.stage = lm.anatomy, stage
        self.power_L = train.power().to(lm.device) if "attn_out" in stage.teacher_sites else torch.empty(0)
        self.dev_batches = list(self._prepared(lm.encoder, dev)) if dev else []

    def _prepared(self, encoder: Encoder, rows: Rows) -> Iterator[dict[str, Any]]:
        for chosen in batches([row for row, _ in rows.items]):
            yield self._prepare_inputs(collate(encoder, [rows[i] for i in chosen], self.stage.teacher_sites))

    def summed_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, int]:
        """The loss summed over the batch's response positions, in float32, and their number."""
        batch = TokenBatch(inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
        student = read(model, self.anatomy, batch, self.stage.sites)
        ids_P = batch.response_ids
        loss = torch.zeros((), device=ids_P.device)
        for term in self.stage.terms:
            wanted = inputs["targets"][term.site] if term.needs_teacher else ids_P
            loss = loss + term.weight * LOSSES[term.loss](student[term.site], wanted, self.power_L).sum()
        return loss, len(ids_P)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the mean over all response tokens of the update."""
        loss, _ = self.summed_loss(model, inputs)
        if num_items_in_batch is None:
            raise RuntimeError("the Trainer did not count the tokens of the update")
        loss = loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The development loss: the stage's own loss, a mean over the response tokens of all development rows."""
        model: nn.Module = self.model_wrapped
        model.eval()
        sums = [self.summed_loss(model, batch) for batch in self.dev_batches]
        loss = sum(s.item() for s, _ in sums) / sum(n for _, n in sums)
        metrics = {"eval_loss": loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class KeepBest(TrainerCallback):
    """Copies the trainable weights whenever the development loss is the best so far, and stops when patience is out."""

    def __init__(self, patience: int):
        self.patience, self.n_bad = patience, 0
        self.loss, self.step = float("inf"), 0
        self.weights: dict[str, Tensor] = {}

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Compare, copy, count."""
        loss = kwargs["metrics"]["eval_loss"]
        if loss < self.loss:
            self.loss, self.step, self.n_bad = loss, state.global_step, 0
            self.weights = trainable_copy(kwargs["model"])
            return
        self.n_bad += 1
        control.should_training_stop |= self.n_bad >= self.patience


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
    lm: LanguageModel, stage: Stage, train: Rows, dev: Rows | None, settings: TrainingSettings, name: str
) -> TrainingResult:
    """Train the adapter of `lm` in place; it ends with its best weights by development loss, or the last without one.

    The weights before the first update count among the candidates. The loss of the restored weights is measured again
    and must be the best one: a restore that does nothing is an error.
    """
    n_epoch = -(-len(train) // (settings.per_device_train_batch_size * settings.gradient_accumulation_steps))
    with tempfile.TemporaryDirectory() as folder, step(name, n_epoch * settings.num_train_epochs) as advance:
        trainer = StageTrainer(lm, stage, train, dev, _arguments(settings, Path(folder), bool(dev)))
        best = KeepBest(settings.early_stopping_patience)
        trainer.add_callback(ShowProgress(advance))
        if dev:
            trainer.add_callback(best)
        trainer.train()
        log = [dict(entry) for entry in trainer.state.log_history]
        if not dev:
            return TrainingResult(None, trainer.state.global_step, log)
        restore(lm.model, best.weights)
        again = trainer.evaluate()["eval_loss"]
        if abs(again - best.loss) > 1e-6 * max(1.0, abs(best.loss)):
            raise RuntimeError(f"{name}: restored weights have loss {again}, the best ones had {best.loss}")
        return TrainingResult(best.loss, best.step, log)


def train_best(
    lm: LanguageModel, stage: Stage, train: Rows, dev: Rows | None, settings: Sequence[TrainingSettings], name: str
) -> dict[str, Any]:
    """Train once with each of several settings, all from the same weights; keep the best by development loss.

    Returns:
        A record for JSON: the learning rate chosen, its loss and steps, all trainings with their logs, the seconds.
    """
    start = time.perf_counter()
    initial = trainable_copy(lm.model)
    results: list[TrainingResult] = []
    weights = []
    for choice in settings:
        restore(lm.model, initial)
        results.append(train_stage(lm, stage, train, dev, choice, f"{name}, learning rate {choice.learning_rate:g}"))
        weights.append(trainable_copy(lm.model))
    losses = [result.loss or 0.0 for result in results]
    best = losses.index(min(losses))
    restore(lm.model, weights[best])
    return {
        "learning_rate": settings[best].learning_rate,
        "loss": results[best].loss,
        "n_steps": results[best].n_steps,
        "seconds": time.perf_counter() - start,
        "trainings": [asdict(choice) | asdict(result) for choice, result in zip(settings, results, strict=True)],
    }


def _arguments(settings: TrainingSettings, folder: Path, has_dev: bool) -> TrainingArguments:
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
