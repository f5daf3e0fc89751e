"""Steps of priming and fine-tuning, and whole jobs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.harness import Row, beside
from benchmarks.subject import examples, load, prompts, task
from ia2.adapters import new_adapter
from ia2.bank import restore, trainable_copy
from ia2.config import make_config
from ia2.contexts import Contexts
from ia2.jobs import Rows, TrainingSettings
from ia2.methods import Stage, methods
from ia2.models import LanguageModel
from ia2.prompt import build_prompt
from ia2.run import Data, Run
from ia2.targets import Targets, collect
from ia2.training import train_stage

N, BATCH, RATE = 16, 4, 1e-3
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
    """Steps, then jobs."""
    return [*steps(10 if quick else 25, 3 if quick else 7), *jobs(2 if quick else 5)]


def steps(epochs: int, repeats: int) -> list[Row]:
    """Of a priming and an SFT stage without development rows; SFT beside a bare loop and TRL."""
    lm, rows = load(), examples("mood", N)
    bare = [lm.encoder.encode(build_prompt(task("mood"), (), row.query, row.label)) for row in rows]
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

        def limit() -> Weights:
            again()
            trained = [p for p in lm.model.parameters() if p.requires_grad]
            adam = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
            lm.model.train()
            for chosen in loop:
                batch = lm.encoder.collate([bare[i] for i in chosen])
                logits_BTV = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
                torch.nn.functional.cross_entropy(logits_BTV[batch.response_mask], batch.response_ids).backward()
                adam.step()
                adam.zero_grad()
            return trainable_copy(lm.model)

        def trl() -> list[float]:
            again()
            return _trl(lm, bare, epochs)

        def logged() -> list[float]:
            again()
            return losses(train_stage(lm, tune, Rows(bare, Targets({})), None, settings).log)

        def sft() -> Weights:
            return ours(tune, Rows(bare, Targets({})))

        head = f"SFT, {N} rows, {len(loop)} steps: beside"
        taught = Rows(bare, targets)
        return [
            beside("a priming step beside an SFT step", lambda: ours(prime, taught), sft, 0.8, repeats, None, False),
            beside(f"{head} a bare loop", sft, limit, 1.25, repeats, alike, higher_is_better=False),
            beside(f"{head} TRL's SFTTrainer", logged, trl, 1.5, repeats, alike_losses),
        ]


def _trl(lm: LanguageModel, rows: list[Any], epochs: int) -> list[float]:
    columns = {
        "input_ids": [list(row.ids) for row in rows],
        "completion_mask": [[0] * (len(row.ids) - row.n_response) + [1] * row.n_response for row in rows],
    }
    with TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            learning_rate=RATE,
            num_train_epochs=epochs,
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
            optim="adamw_torch",
            seed=0,
        )
        data, tokenizer = Dataset.from_dict(columns), lm.encoder.tokenizer
        trainer = SFTTrainer(lm.model, args, train_dataset=data, processing_class=tokenizer)
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


def jobs(repeats: int) -> list[Row]:
    """A whole `ia2-sft` job with development rows beside a whole `sft` job: the price of the second stage."""
    lm = load()
    data = Data(examples("mood", N), examples("mood", 8, "dev"))

    def job(method: str) -> None:
        with TemporaryDirectory() as folder:
            config = make_config({"model": "tiny", "method": method, "labels": task("mood").labels})
            Run.create(Path(folder) / "run", config, data).train(lm)

    name = f"the whole ia2-sft job, N={N}: beside plain SFT"
    return [beside(name, lambda: job("ia2-sft"), lambda: job("sft"), None, repeats, higher_is_better=False)]
