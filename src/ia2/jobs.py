"""What a training is: rows with the teacher's values, settings, the weights to begin with; and what becomes of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainingArguments

from ia2.bank import Weights
from ia2.capture import Site
from ia2.losses import mean_square
from ia2.prompt import Tokens
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
        snapshots: the weights of every so many updates are kept, from those before the first on; 0 for none.
    """

    learning_rate: float
    num_train_epochs: int = 50
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    eval_steps: int = 2
    early_stopping_patience: int = 5
    metric_for_best_model: Metric = "loss"
    seed: int = 0
    snapshots: int = 0


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
        """The teacher's mean square activation per layer over all rows, (L,); in float64, a part of them at a time."""
        total_L, n = torch.zeros((), dtype=torch.float64), 0
        for start in range(0, len(self), 256):
            acts_PLD = torch.cat([targets[site] for _, targets in self.items[start : start + 256]])
            total_L, n = total_L + mean_square(acts_PLD).double() * len(acts_PLD), n + len(acts_PLD)
        return (total_L / n).float()


@dataclass(frozen=True)
class Job:
    """One training: the weights that it begins with, its rows and its settings."""

    start: Weights
    train: Rows
    dev: Rows | None
    settings: TrainingSettings

    @property
    def shape(self) -> tuple[Any, ...]:
        """What jobs must have in common to be trained side by side."""
        n_dev = len(self.dev) if self.dev else None
        return len(self.train), n_dev, replace(self.settings, learning_rate=0.0, seed=0)

    @property
    def tokens_per_step(self) -> int:
        """At most, with padding."""
        return self.settings.per_device_train_batch_size * max(len(row.ids) for row in self.train.rows)


class Epoch(Dataset[list[Item]]):
    """Of each job one row: the i-th in the order that the job's seed gives to this epoch."""

    def __init__(self, jobs: Sequence[Job]):
        self.jobs = jobs
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Renew the rows, and draw the orders."""
        for rows in {id(job.train): job.train for job in self.jobs}.values():
            rows.begin(epoch)
        seeds = [[job.settings.seed, epoch] for job in self.jobs]
        self.orders = [np.random.default_rng(seed).permutation(len(self)) for seed in seeds]

    def __len__(self) -> int:
        return len(self.jobs[0].train)

    def __getitem__(self, i: int) -> list[Item]:
        return [job.train[order[i]] for job, order in zip(self.jobs, self.orders, strict=True)]


def arguments(settings: TrainingSettings, folder: Path, has_dev: bool) -> TrainingArguments:
    """Adam with a constant learning rate, no weight decay, no clipping (paper, settings)."""
    return TrainingArguments(
        output_dir=str(folder),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.num_train_epochs,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        optim="adamw_torch_fused",
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        eval_strategy="steps" if has_dev else "no",
        eval_steps=settings.eval_steps,
        eval_on_start=has_dev,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
    )


@dataclass
class Record:
    """What is known of a job so far; `n_bad` looks at the development rows in a row were no better."""

    weights: Weights = field(default_factory=dict)
    value: float = math.inf
    step: int = 0
    n_bad: int = 0
    stopped: str | None = None
    loss: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)
    snapshots: dict[int, Weights] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingResult:
    """What became of one training.

    Attributes:
        weights: those kept.
        value: of these by the settings' metric, lower is better (accuracy is negated); None without development rows.
        n_steps: the step at which they were reached.
        stopped: why training was cut short, if it was.
        log: the loss of every step, and what was seen of the development rows.
        n_jobs: trained side by side, this one included.
        seconds: its share of their wall time.
        snapshots: weights on the way, by the number of updates before them.
    """

    weights: Weights
    value: float | None
    n_steps: int
    stopped: str | None
    log: list[dict[str, float]]
    n_jobs: int
    seconds: float
    snapshots: dict[int, Weights]


def best_of(
    settings: Sequence[TrainingSettings], results: Sequence[TrainingResult]
) -> tuple[TrainingResult, dict[str, Any]]:
    """The best of several trainings by development rows, the first of equals.

    And a record for JSON: the learning rate chosen, its value and steps, all trainings with their logs, the seconds.
    """
    best = min(range(len(results)), key=lambda i: results[i].value or 0.0)
    names = ("value", "n_steps", "stopped", "log")
    trainings = [
        asdict(choice) | {name: getattr(result, name) for name in names}
        for choice, result in zip(settings, results, strict=True)
    ]
    return results[best], {
        "learning_rate": settings[best].learning_rate,
        "value": results[best].value,
        "n_steps": results[best].n_steps,
        "seconds": sum(result.seconds for result in results),
        "n_jobs": max(result.n_jobs for result in results),
        "trainings": trainings,
    }
