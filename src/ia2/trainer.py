"""`IA2Trainer`: one stage, such as priming, as a `transformers.Trainer` that is used as TRL's trainers are."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments, set_seed

from ia2.adapters import peft_config as default_config
from ia2.adapters import peft_warnings_ignored
from ia2.bank import Bank, trainable_copy
from ia2.config import make_config
from ia2.data import Example, Row, to_examples
from ia2.errors import IA2Error
from ia2.files import key_of
from ia2.jobs import Job, TrainingSettings
from ia2.models import load_model, wrap_model
from ia2.run import Data, Run
from ia2.training import NotFinite, StageTrainer, Steps, restore_best


@dataclass
class IA2Config(TrainingArguments):
    """`TrainingArguments` with the paper's defaults.

    Attributes:
        options: of `RunConfig`, by name: `method` (of one stage: `ia2`, `hidden`, `soft`, `joint`, ...), `loss`,
            `layers`, `positions`, `demos`, `context`, `chat`, ...; on a command line as JSON.
        early_stopping_patience: looks at the development rows without a better value before stopping.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "options"]  # noqa: RUF012 - as there

    options: dict[str, Any] | str | None = None
    early_stopping_patience: int = 5
    learning_rate: float = 1e-3
    num_train_epochs: float = 50
    per_device_train_batch_size: int = 4
    lr_scheduler_type: str = "constant"
    max_grad_norm: float = 0.0
    eval_strategy: str = "steps"
    eval_steps: float = 2
    eval_on_start: bool = True
    logging_steps: float = 2
    save_strategy: str = "no"
    report_to: str = "none"
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = False


class IA2Trainer(StageTrainer):
    """Trains an adapter to do without the demos what the model does with them.

    The model ends with its best weights by the evaluation rows, or the last without any; `save_model` writes them as a
    PEFT folder, which TRL's `SFTTrainer` fine-tunes further.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: IA2Config,
        train_dataset: Iterable[Mapping[str, Any]],
        eval_dataset: Iterable[Mapping[str, Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        """Read the teacher on all rows, each behind the others.

        Args:
            model: a base model, or the name of one.
            args: of training.
            train_dataset: rows of `prompt` and `completion`, of `messages`, or of `query` and `response`.
            eval_dataset: likewise, to stop by.
            processing_class: the tokenizer, where the model is not a name.
            peft_config: of the adapter; LoRA of rank 8 on attention by default.
            callbacks: more of them.

        Raises:
            IA2Error: a row that cannot be read, an unknown option, or a method of several stages.
        """
        if isinstance(args.options, str):
            raise IA2Error(f'options is {args.options!r}; expected JSON such as \'{{"method": "ia2"}}\'')
        name = model if isinstance(model, str) else model.config.name_or_path or type(model).__name__
        config = make_config({"method": "ia2", "seed": args.seed, **(args.options or {}), "model": name})
        if len(config.stages()) > 1:
            raise IA2Error(f"the method is '{config.method}'; expected one of a single stage, such as 'ia2'")
        if isinstance(model, str):
            lm = load_model(model, **config.base)
        elif processing_class is None:
            raise IA2Error("processing_class is None; expected the tokenizer of the model")
        else:
            if not hasattr(model, "hf_device_map"):
                model.to(args.device)  # type: ignore[arg-type]  # the teacher reads before the Trainer would move it
            lm = wrap_model(model, processing_class, config.chat)
        data = Data(_examples(train_dataset, "train_dataset"), _examples(eval_dataset or (), "eval_dataset"))
        folder = Path(str(args.output_dir)) / "_run"  # what begins so is not pushed to the hub
        what = [lm.fingerprint, config.model_dump(mode="json"), asdict(data)]
        own = folder / key_of(what)[:32]  # another training may have the same output_dir
        run = Run(own, config, data, folder / "targets")
        run.check_rows()
        [(_, stage)] = config.stages().items()
        contexts = run.contexts(lm)
        train, dev = run.lessons(lm, contexts).rows(stage)
        set_seed(args.seed)
        first = contexts.prompt(run.task(), data.train[0], None, np.random.default_rng(args.seed))
        with peft_warnings_ignored():
            lm.model = get_peft_model(lm.base, peft_config or default_config(lm, "lora", {}, first))
        settings = TrainingSettings(
            args.learning_rate,
            per_device_train_batch_size=args.train_batch_size * args.world_size,
            early_stopping_patience=args.early_stopping_patience,
            seed=args.seed,
        )
        if dev is None:
            args.eval_strategy, args.eval_on_start = "no", False
        start = trainable_copy(lm.model)
        super().__init__(lm, stage, [Job(start, train, dev, settings)], Bank(lm.model, [start]), args)
        self.processing_class = lm.encoder.tokenizer  # it is saved beside the adapter
        for callback in (Steps(self), *callbacks):
            self.add_callback(callback)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ever, but None where the loss stopped being finite; then the best weights are put back."""
        result = None
        with suppress(NotFinite):
            result = super().train(*args, **kwargs)
        restore_best(self, "training")
        return result

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As ever, but for the arguments, which the main process writes: they would be a pickle."""
        super()._save(output_dir, state_dict)
        Path(output_dir or str(self.args.output_dir), "training_args.bin").unlink(missing_ok=True)


def _examples(rows: Iterable[Mapping[str, Any]], name: str) -> list[Example]:
    return to_examples([Row(f"{name} row {i}", columns) for i, columns in enumerate(rows, 1)])
