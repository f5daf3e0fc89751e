"""What a training is: rows with the teacher's values, settings, the weights to begin with; and what becomes of it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainingArguments

from ia2.bank import Weights, can_bank
from ia2.capture import Site
from ia2.losses import mean_square
from ia2.memory import halves
from ia2.models import LanguageModel
from ia2.passes import NO_ROW, TOKENS_PER_BATCH
from ia2.processes import processes
from ia2.progress import say
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
        per_device_train_batch_size: rows a step; processes share them, so that the effective batch is this times
            accumulation, however many there are.
        gradient_accumulation_steps: micro-batches an update; changes memory, not results.
        eval_steps: updates between two looks at the development rows.
        early_stopping_patience: looks without a better value before stopping.
        metric_for_best_model: what is looked at: the stage's own `loss`, the `nll` of the responses, or the `accuracy`
            of their tokens.
        seed: of the order of rows.
        report_to: trackers, by the names that transformers has for them.
        snapshots: the weights of every so many updates are kept, from those before the first on, and those after the
            last; 0 for none.
    """

    learning_rate: float
    num_train_epochs: int = 50
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    eval_steps: int = 2
    early_stopping_patience: int = 5
    metric_for_best_model: Metric = "loss"
    seed: int = 0
    report_to: tuple[str, ...] = ()
    snapshots: int = 0


class Rows(Dataset[Item]):
    """Student rows, each with the teacher's values; `renew(epoch)`, if given, yields other values for a later epoch."""

    def __init__(self, rows: Sequence[Tokens], targets: Targets, renew: Callable[[int], Targets] | None = None):
        self.rows, self.targets, self.renew = list(rows), targets, renew

    @property
    def items(self) -> list[Item]:
        """All of them."""
        return [self[i] for i in range(len(self))]

    def begin(self, epoch: int) -> None:
        """Called before every epoch; epoch 0 has the values given."""
        if self.renew:
            self.targets = self.renew(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Item:
        return self.rows[i], {site: values[i] for site, values in self.targets.values.items()}

    @property
    def nothing(self) -> Item:
        """A row that counts for nothing."""
        return NO_ROW, {site: values[:0] for site, values in self[0][1].items()}

    def power(self, site: Site) -> Tensor:
        """The teacher's mean square activation per layer over all rows, (L,); in float64, a part of them at a time."""
        total_L, n = torch.zeros((), dtype=torch.float64), 0
        for start in range(0, len(self), 256):
            acts_PLD = torch.cat(list(self.targets.values[site][start : start + 256]))
            total_L, n = total_L + mean_square(acts_PLD).double() * len(acts_PLD), n + len(acts_PLD)
        return (total_L / n).float()


@dataclass(frozen=True)
class Job:
    """One training: the weights that it begins with, its rows and its settings; its name for trackers."""

    start: Weights
    train: Rows
    dev: Rows | None
    settings: TrainingSettings
    name: str = ""

    @property
    def shape(self) -> tuple[Any, ...]:
        """What jobs must have in common to be trained side by side."""
        n_dev = len(self.dev) if self.dev else None
        return len(self.train), n_dev, replace(self.settings, learning_rate=0.0, seed=0)

    @property
    def tokens_per_step(self) -> int:
        """At most, with padding."""
        return self.settings.per_device_train_batch_size * max(row.n_inputs for row in self.train.rows)


class Epoch(Dataset[list[Item]]):
    """Of each job one row: the i-th in the order that the job's seed gives to this epoch.

    Several processes share every batch of the settings, in equal parts: `NO_ROW` fills it up.
    """

    def __init__(self, jobs: Sequence[Job], n_processes: int = 1):
        self.jobs = jobs
        n, batch = len(jobs[0].train), jobs[0].settings.per_device_train_batch_size
        filled = share(batch, n_processes) * n_processes if n_processes > 1 else 0
        self.places: list[int | None] = []
        for start in range(0, n, batch):
            places = range(start, min(start + batch, n))
            self.places += [*places, *[None] * (filled - len(places))]
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Renew the rows, and draw the orders."""
        for rows in {id(job.train): job.train for job in self.jobs}.values():
            rows.begin(epoch)
        seeds = [[job.settings.seed, epoch] for job in self.jobs]
        self.orders = [np.random.default_rng(seed).permutation(len(self.jobs[0].train)) for seed in seeds]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> list[Item]:
        place = self.places[i]
        if place is None:
            return [job.train.nothing for job in self.jobs]
        return [job.train[order[place]] for job, order in zip(self.jobs, self.orders, strict=True)]


def share(batch_size: int, n_processes: int) -> int:
    """Rows of a batch that each process takes."""
    return -(-batch_size // n_processes)


def arguments(settings: TrainingSettings, folder: Path, has_dev: bool) -> TrainingArguments:
    """Adam with a constant learning rate, no weight decay, no clipping (paper, settings)."""
    return TrainingArguments(
        output_dir=str(folder),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.num_train_epochs,
        per_device_train_batch_size=share(settings.per_device_train_batch_size, processes().num_processes),
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
        save_total_limit=1,
        report_to=list(settings.report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,  # rows are not collated yet
        seed=settings.seed,
    )


def side_by_side(lm: LanguageModel, jobs: Sequence[Job]) -> Iterator[list[int]]:
    """Indices of jobs that are trained at once: of one shape, within `TOKENS_PER_BATCH` tokens a step."""
    shapes: dict[Any, list[int]] = {}
    together = can_bank(lm.model) and processes().num_processes == 1  # gradients of a bank are not exchanged
    for i, job in enumerate(jobs):
        shapes.setdefault(job.shape if together else i, []).append(i)
    for alike in shapes.values():
        alike.sort(key=lambda i: jobs[i].settings.learning_rate)  # the optimiser then has few and large weights
        n = max(1, TOKENS_PER_BATCH // max(jobs[i].tokens_per_step for i in alike))
        yield from (alike[i : i + n] for i in range(0, len(alike), n))


def smaller(jobs: Sequence[Job], name: str) -> list[Sequence[Job]]:
    """Parts that need less memory at once: half as many jobs, or one with fewer rows in a pass and the same updates.

    Says so. None, if there are none.
    """
    if len(jobs) > 1:
        say(f"{name}: out of memory with {len(jobs)} trainings side by side; now half as many")
        return list(halves(jobs))
    [job] = jobs
    n, n_passes = job.settings.per_device_train_batch_size, job.settings.gradient_accumulation_steps
    fewer = max((m for m in range(1, n // 2 + 1) if n * n_passes % m == 0), default=0)
    if not fewer:
        return []
    n_passes = n * n_passes // fewer
    say(f"{name}: out of memory with {n} rows in a pass; now {fewer}, and {n_passes} passes an update")
    settings = replace(job.settings, per_device_train_batch_size=fewer, gradient_accumulation_steps=n_passes)
    return [[replace(job, settings=settings)]]


@dataclass
class Record:
    """What is known of a job so far: the best weights, their `value` and loss; `n_bad` looks since were no better."""

    weights: Weights = field(default_factory=dict)
    value: float = math.inf
    dev_loss: float = math.inf
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
