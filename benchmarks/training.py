"""Steps of priming and fine-tuning, and whole jobs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from torch._inductor.utils import fresh_inductor_cache
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.harness import Row, beside
from benchmarks.subject import ATTENTION, Plain, examples, load, prompts, task
from ia2.adapters import new_adapter
from ia2.bank import Bank, restore, trainable_copy
from ia2.capture import read
from ia2.config import make_config
from ia2.contexts import Contexts
from ia2.data import Example
from ia2.files import read_json
from ia2.jobs import Job, Rows, TrainingSettings
from ia2.losses import LOSSES, Scale
from ia2.methods import Stage, methods
from ia2.models import LanguageModel
from ia2.prompt import TokenBatch, Tokens, build_prompt
from ia2.run import Data, Run
from ia2.targets import Targets, collect
from ia2.training import train_jobs, train_stage

N, BATCH, RATE, RATES = 16, 4, 1e-3, (3e-4, 1e-3, 3e-3)
EARLY = 5  # steps over which grids are compared: rounding grows, the more the larger the rate
COMPARED = 40  # of one adapter
Weights = dict[str, torch.Tensor]


class Recorded(Rows):
    """Rows that remember the order in which they were asked for."""

    def __getitem__(self, i: int) -> Any:
        """Remember, then as ever."""
        self.asked = [*getattr(self, "asked", []), i]
        return super().__getitem__(i)


@contextmanager
def adapted(lm: LanguageModel) -> Iterator[Callable[[], None]]:
    """With a new LoRA adapter; yields what puts its first weights back."""
    with new_adapter(lm, "lora", {}, 0, None, None):
        first = trainable_copy(lm.model)
        yield lambda: restore(lm.model, first)


def run(quick: bool) -> list[Row]:
    """Steps, banks, jobs."""
    repeats = 3 if quick else 7
    return [*steps(10 if quick else 25, repeats), *banks(10, repeats), *jobs(3)]


def steps(epochs: int, repeats: int) -> list[Row]:
    """Of a priming and an SFT stage without development rows; SFT beside a bare loop and TRL."""
    lm, rows = load(), examples("mood", N)
    bare = _bare(lm, rows)
    settings = TrainingSettings(RATE, epochs, BATCH)
    table = methods()
    prime, tune = table["ia2"].stages[0], table["sft"].stages[0]
    targets = collect(lm, prompts("mood", rows, Contexts(tuple(rows))), prime.selection(lm.anatomy))
    order = Recorded(bare, Targets({}))

    with adapted(lm) as again:

        def ours(stage: Stage, given: Rows) -> Weights:
            again()
            train_stage(lm, stage, given, None, settings)
            return trainable_copy(lm.model)

        ours(tune, order)
        asked = list(order.asked)
        loop = [asked[i : i + BATCH] for i in range(0, len(asked), BATCH)]

        def limit(rate: float = RATE) -> Weights:
            again()
            trained = [p for p in lm.model.parameters() if p.requires_grad]
            adam = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
            lm.model.train()
            for chosen in loop:
                batch = lm.encoder.collate([bare[i] for i in chosen])
                logits_BTV = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
                torch.nn.functional.cross_entropy(logits_BTV[batch.response_mask], batch.response_ids).backward()
                adam.step()
                adam.zero_grad()
            return trainable_copy(lm.model)

        def trl(rate: float = RATE) -> list[float]:
            again()
            return _trl(lm, [bare[i] for i in asked], rate)

        def logged() -> list[float]:
            again()
            return losses(train_stage(lm, tune, Rows(bare, Targets({})), None, settings).log)[:COMPARED]

        def sft() -> Weights:
            return ours(tune, Rows(bare, Targets({})))

        def compiled() -> list[float]:
            layers = [lm.base.get_submodule(path) for path in lm.anatomy.layers]
            with fresh_inductor_cache():
                torch._dynamo.reset()
                for layer in layers:
                    layer.compile()
                try:
                    return logged()
                finally:
                    for layer in layers:
                        layer._compiled_call_impl = None

        def grid() -> list[float]:
            again()
            start, given = trainable_copy(lm.model), Rows(bare, Targets({}))
            jobs = [Job(start, given, None, replace(settings, learning_rate=rate)) for rate in RATES]
            return [loss for result in train_jobs(lm, tune, jobs) for loss in losses(result.log)[:EARLY]]

        def trl_grid() -> list[float]:
            return [loss for rate in RATES for loss in trl(rate)[:EARLY]]

        def limit_grid() -> list[Weights]:
            return [limit(rate) for rate in RATES]

        grids = f"SFT with {len(RATES)} learning rates: beside"
        head = f"SFT, {N} rows, {len(loop)} steps: beside"
        taught = Rows(bare, targets)

        def alone(stage: Stage) -> None:
            limit_of(lm, stage, [Job(trainable_copy(lm.model), taught, None, settings)])

        step = "a priming step beside an SFT step"
        return [
            beside(step, lambda: ours(prime, taught), sft, 0.8, repeats, None, False),
            beside(
                f"{step}, the bare passes of both",
                lambda: alone(prime),
                lambda: alone(tune),
                None,
                repeats,
                None,
                False,
            ),
            beside(f"{head} a bare loop", sft, limit, 1.25, repeats, alike, higher_is_better=False),
            beside(f"{head} the same with compiled layers", logged, compiled, None, 1, alike_losses),
            beside(f"{head} TRL's SFTTrainer", logged, lambda: trl()[:COMPARED], 1.5, repeats, alike_losses),
            beside(f"{grids} bare loops, one after another", grid, limit_grid, 1.25, repeats, None, False),
            beside(f"{grids} TRL's SFTTrainer, one after another", grid, trl_grid, 1.5, repeats, alike_losses),
        ]


class InOrder(SFTTrainer):  # type: ignore[misc]
    """Takes rows in the order given."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)


def _trl(lm: LanguageModel, rows: list[Any], rate: float) -> list[float]:
    columns = {
        "input_ids": [list(row.ids) for row in rows],
        "completion_mask": [[0] * (len(row.ids) - row.n_response) + [1] * row.n_response for row in rows],
    }
    with TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            learning_rate=rate,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            gradient_checkpointing=False,
            bf16=False,
            completion_only_loss=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            dataloader_pin_memory=False,
            optim="adamw_torch_fused",
            seed=0,
        )
        data, tokenizer = Dataset.from_dict(columns), lm.encoder.tokenizer
        trainer = InOrder(lm.model, args, train_dataset=data, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return losses(trainer.state.log_history)


def losses(log: list[dict[str, float]]) -> list[float]:
    """Training losses along a run, step by step."""
    return [entry["loss"] for entry in log if "loss" in entry]


def alike_losses(a: list[float], b: list[float]) -> bool:
    """Equal to 1e-3 all along. Weights are not compared: Adam makes a whole step of rounding where a gradient is 0."""
    return len(a) == len(b) > 0 and all(abs(x - y) <= 1e-3 for x, y in zip(a, b, strict=True))


def alike(a: Weights, b: Weights) -> bool:
    """Trained weights equal to 1e-4, a tenth of a step of Adam: float32 rounding grows over the steps."""
    return all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def banks(epochs: int, repeats: int) -> list[Row]:
    """A grid of learning rates and seeds side by side, beside one after another; without early stopping."""
    lm, stage = load(), methods()["ia2"].stages[0]
    made = taught_rows(lm)
    with new_adapter(lm, "lora", {}, 0, None, None) as model:
        start = trainable_copy(model)
        jobs = [
            Job(start, *made, TrainingSettings(rate, epochs, BATCH, early_stopping_patience=1000, seed=seed))
            for seed in range(4)
            for rate in RATES
        ]

        def trained(together: bool) -> list[float]:
            results = train_jobs(lm, stage, jobs, together=together)
            return [loss for result in results for loss in losses(result.log)[:EARLY]]

        def trl() -> None:
            for job in jobs:
                restore(model, start)
                _trl(lm, list(made[0].rows) * epochs, job.settings.learning_rate)

        name = f"a grid of {len(jobs)} adapters: beside"
        return [
            beside(
                f"{name} one after another", lambda: trained(True), lambda: trained(False), 4, repeats, alike_losses
            ),
            beside(
                f"{name} one after another, were it bare passes",
                lambda: limit_of(lm, stage, jobs),
                lambda: trained(False),
                None,
                3,
            ),
            beside(f"{name} TRL's SFTTrainer without development rows", lambda: trained(True), trl, 4, 3),
        ]


def taught_rows(lm: LanguageModel) -> tuple[Rows, Rows]:
    """To train on and to look at, with what the teacher does."""
    train, dev = examples("mood", N), examples("mood", 8, "dev")
    contexts = Contexts(tuple(train))
    targets = [collect(lm, prompts("mood", of, contexts), ATTENTION) for of in (train, dev)]
    return Rows(_bare(lm, train), targets[0]), Rows(_bare(lm, dev), targets[1])


def limit_of(lm: LanguageModel, stage: Stage, jobs: Sequence[Job]) -> None:
    """The limit: the passes of `train_jobs` and Adam's steps; no orders, early stopping, best weights or records."""
    [term] = stage.terms
    bank, settings = Bank(lm.model, [job.start for job in jobs]), jobs[0].settings
    adam = torch.optim.AdamW(bank.parameters(0, len(jobs)), lr=settings.learning_rate, weight_decay=0.0, fused=True)

    def collated(rows: Rows, chosen: range) -> tuple[TokenBatch, torch.Tensor]:
        batch = lm.encoder.collate([rows.rows[i] for i in chosen] * len(jobs), stage.positions)
        if not term.needs_teacher:
            return batch, batch.response_ids
        return batch, torch.cat([rows.targets.values[term.site][i] for i in chosen] * len(jobs))

    def loss(batch: TokenBatch, wanted: torch.Tensor) -> torch.Tensor:
        found = read(lm.model, lm.anatomy, batch, stage.sites)[term.site]
        return LOSSES[term.loss](found, wanted, scale).mean() * len(jobs)

    train, dev, size = jobs[0].train, jobs[0].dev, settings.per_device_train_batch_size
    scale = Scale(train.power(term.site) if term.needs_teacher else torch.empty(0))
    steps = [collated(train, range(i, min(i + size, len(train)))) for i in range(0, len(train), size)]
    looked_at = collated(dev, range(len(dev))) if dev else None
    with bank.attached():
        for step in range(settings.num_train_epochs * len(steps)):
            loss(*steps[step % len(steps)]).backward()
            adam.step()
            bank.clear_gradients()
            if looked_at and step % settings.eval_steps == 0:
                with torch.no_grad():
                    loss(*looked_at)


def _bare(lm: LanguageModel, rows: Sequence[Example]) -> list[Tokens]:
    return [lm.encoder.encode(build_prompt(task("mood"), (), row.query, row.label)) for row in rows]


def jobs(repeats: int) -> list[Row]:
    """A whole `ia2-sft` job with development rows, beside the published procedure and beside a whole `sft` job."""
    lm = load()
    data = Data(examples("mood", N), examples("mood", 8, "dev"))
    own = {"loss": "mse", "learning_rate": RATES, "num_train_epochs": 25, "early_stopping_patience": 1000}

    def job(method: str) -> list[float]:
        with TemporaryDirectory() as folder:
            config = make_config({"model": "tiny", "method": method, "labels": task("mood").labels, **own})
            run = Run.create(Path(folder) / "run", config, data)
            folders = run.train(lm).values()
            return [read_json(of / "training.json")["trainings"][0]["log"][0]["eval_loss"] for of in folders]

    contexts = Contexts(tuple(data.train))
    taught = [[lm.encoder.encode(prompt) for prompt in prompts("mood", of, contexts)] for of in (data.train, data.dev)]

    def published() -> list[float]:
        with adapted(lm) as again:
            parts = [(rows, _bare(lm, of)) for rows, of in zip(taught, (data.train, data.dev), strict=True)]
            return Plain(lm, again, parts[0], parts[1], RATES, own["num_train_epochs"]).job()

    def alike_first(a: list[float], b: list[float]) -> bool:
        """The first stage begins at one loss, to a tenth: its demos are in other orders."""
        return abs(a[0] - b[0]) < 0.1 * b[0]

    made = taught_rows(lm)

    def limit() -> None:
        with new_adapter(lm) as model:
            start = trainable_copy(model)
            for stage in methods()["ia2-sft"].stages:
                settings = [TrainingSettings(rate, own["num_train_epochs"], BATCH) for rate in RATES]
                limit_of(lm, stage, [Job(start, *made, of) for of in settings])

    name = f"the whole ia2-sft job, N={N}, {len(RATES)} learning rates: beside"
    return [
        beside(f"{name} the published procedure", lambda: job("ia2-sft"), published, 10, repeats, alike_first),
        beside(f"{name} the published procedure, were it bare passes", limit, published, None, repeats),
        beside(f"{name} plain SFT", lambda: job("ia2-sft"), lambda: job("sft"), None, repeats, higher_is_better=False),
    ]
