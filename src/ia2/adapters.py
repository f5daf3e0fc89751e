"""Adapters on the frozen base, all through PEFT."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from ia2.errors import IA2Error
from ia2.files import write_json, written_aside
from ia2.models import LanguageModel


@contextmanager
def new_adapter(lm: LanguageModel, r: int, lora_alpha: int, seed: int) -> Iterator[PeftModel]:
    """Within the block, `lm.model` is the base with a fresh trainable LoRA on its default targets; after it, the base.

    A fresh adapter changes nothing yet: its second factor is zero. It is kept in float32 whatever the base is in.
    """
    targets = lm.anatomy.default_targets
    fused = isinstance(lm.base.get_submodule(lm.anatomy.attn_out[0]), Conv1D)
    set_seed(seed)
    config = LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=targets, fan_in_fan_out=fused, task_type="CAUSAL_LM")
    with _deprecations_of_peft_ignored():
        model = get_peft_model(lm.base, config)
    with _attached(lm, model):
        yield model


@contextmanager
def loaded_adapters(lm: LanguageModel, folders: dict[str, Path]) -> Iterator[None]:
    """Within the block, the adapters of these PEFT folders are on the base by name; choose one with `using`.

    Raises:
        IA2Error: a folder holds no adapter, or one that does not fit the model.
    """
    if not folders:
        yield
        return
    for folder in folders.values():
        if not (folder / "adapter_model.safetensors").is_file():
            raise IA2Error(f"{folder}: no adapter_model.safetensors; expected a PEFT adapter folder")
    (first, folder), *others = folders.items()
    with _deprecations_of_peft_ignored():
        model = PeftModel.from_pretrained(lm.base, str(folder), adapter_name=first)
    with _attached(lm, model.eval()):
        for name, folder in others:
            model.load_adapter(str(folder), adapter_name=name)
        yield


@contextmanager
def _deprecations_of_peft_ignored() -> Iterator[None]:
    with warnings.catch_warnings():  # PEFT 0.21 asks transformers 5.23 by a name that is on its way out
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


@contextmanager
def _attached(lm: LanguageModel, model: PeftModel) -> Iterator[None]:
    lm.model = model
    try:
        yield
    finally:
        model.unload()
        lm.model = lm.base


@contextmanager
def using(lm: LanguageModel, name: str | None) -> Iterator[None]:
    """Within the block, `lm.model` computes with the adapter of this name; with none of them if it is None."""
    if lm.model is lm.base:
        yield
    elif name is None:
        with lm.model.disable_adapter():
            yield
    else:
        lm.model.set_adapter(name)
        yield


def save_adapter(model: PeftModel, folder: Path, record: dict[str, Any]) -> None:
    """Write a plain PEFT folder, which `PeftModel.from_pretrained` loads, with `record` in training.json."""
    with written_aside(folder) as aside:
        model.save_pretrained(str(aside))
        write_json(aside / "training.json", record)


def n_trainable(model: torch.nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
