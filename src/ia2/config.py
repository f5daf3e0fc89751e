"""The configuration of a run: checked, and kept beside its results."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ia2.errors import IA2Error, choose
from ia2.losses import ALIGNMENT_LOSSES
from ia2.methods import METHODS
from ia2.training import TrainingSettings


class RunConfig(BaseModel):
    """Everything that determines a run but its rows. Names are those of transformers and PEFT where they have one.

    Several learning rates are tried, and the best development loss decides, for each stage by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    method: str = "ia2-sft"
    loss: str = "nmse"
    labels: tuple[str, ...] | Literal["auto", "none"] = "auto"
    seed: int = Field(0, ge=0)

    r: int = Field(8, ge=1)
    lora_alpha: int = Field(8, ge=1)

    learning_rate: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    prime_learning_rate: tuple[float, ...] | None = None  # None: those of learning_rate
    num_train_epochs: int = Field(50, ge=1)
    per_device_train_batch_size: int = Field(4, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    eval_steps: int = Field(2, ge=1)
    early_stopping_patience: int = Field(5, ge=1)
    max_new_tokens: int = Field(200, ge=1)

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        return choose("method", name, METHODS)

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, name: str) -> str:
        return choose("loss", name, ALIGNMENT_LOSSES)

    @field_validator("learning_rate", "prime_learning_rate")
    @classmethod
    def _positive(cls, rates: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if rates is not None and (not rates or min(rates) <= 0):
            raise IA2Error(f"learning rates are {list(rates)}; expected at least one, all above 0")
        return rates

    def settings(self, learning_rate: float, n_rows: int) -> TrainingSettings:
        """Of one training on so many rows: the effective batch is never larger than they are (paper: min(4, N))."""
        return TrainingSettings(
            learning_rate=learning_rate,
            num_train_epochs=self.num_train_epochs,
            per_device_train_batch_size=min(self.per_device_train_batch_size, n_rows),
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            eval_steps=self.eval_steps,
            early_stopping_patience=self.early_stopping_patience,
            seed=self.seed,
        )


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"loss": "mse", "learning_rate": (1e-4, 3e-4, 1e-3)},
}


def make_config(values: dict[str, Any], preset: str = "default") -> RunConfig:
    """A checked configuration: `values` over the preset's over the defaults.

    Raises:
        IA2Error: an unknown name or a wrong value; says which, and the nearest known name.
    """
    values = {**PRESETS[choose("preset", preset, PRESETS)], **values}
    for name in values:
        choose("option", name, RunConfig.model_fields)
    try:
        return RunConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, IA2Error):
            raise cause from None
        where = ".".join(str(part) for part in first["loc"][:1])
        raise IA2Error(f"option '{where}' is {first['input']!r}: {first['msg'].lower()}") from None


def read_config(path: Path) -> dict[str, Any]:
    """The values in a YAML file of options."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IA2Error(f"{path}: no such file; expected YAML with options such as 'method: ia2-sft'") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise IA2Error(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise IA2Error(f"{path}: found {type(values).__name__}, expected 'option: value' lines")
    return values
