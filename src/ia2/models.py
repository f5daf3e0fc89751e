"""Loading a decoder-only model."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ia2 import world
from ia2.anatomy import Anatomy, find_anatomy
from ia2.errors import IA2Error
from ia2.prompt import Encoder


@dataclass
class LanguageModel:
    """A frozen base model with its tokenizer; `model` is the base, or the PEFT model around it."""

    base: PreTrainedModel
    encoder: Encoder
    anatomy: Anatomy
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.base

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.base.device

    @property
    def adds_tokens(self) -> bool:
        """Whether the adapter puts virtual tokens, or keys and values of such, before the prompt."""
        return isinstance(self.model, PeftModel) and bool(self.model.active_peft_config.is_prompt_learning)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every frozen weight: its name, type, shape and bytes. Adapter weights do not count."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.base.state_dict().items()):
            if "lora_" in name:
                continue
            digest.update(f"{name.replace('.base_layer', '')} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_model(name: str, device: str | None = None) -> LanguageModel:
    """Load an embedded model (`tiny`, `tiny-gpt2`), a folder, or a Hugging Face hub id.

    Weights come from safetensors only and keep their type. Dropout of the base is off: it is frozen, and teacher and
    student must compute the same.

    Args:
        name: which model.
        device: where to put it; by default an accelerator if there is one.

    Raises:
        IA2Error: nothing of this name, or not a decoder-only language model.
    """
    path = str(world.MODELS.get(name, name))
    if (Path(path).exists() or path.startswith((".", "/", "~"))) and not (Path(path) / "config.json").is_file():
        raise IA2Error(f"{path}: not a model folder (no config.json); expected one written by save_pretrained")
    try:
        config = AutoConfig.from_pretrained(path)
        for key, value in config.to_dict().items():
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)
        base = AutoModelForCausalLM.from_pretrained(path, config=config, dtype="auto", use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        known = ", ".join(world.MODELS)
        raise IA2Error(
            f"cannot load the model '{name}' ({known}, a folder or a hub id was expected): {reason}"
        ) from error
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = str(accelerator or "cpu")
    base.to(device)  # type: ignore[arg-type]  # transformers' own decoration of `to` hides its signature
    return wrap_model(base, tokenizer)


def wrap_model(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """A `LanguageModel` of a transformers model that is already in memory; freezes it."""
    base.eval().requires_grad_(False)
    window = getattr(base.config.get_text_config(), "max_position_embeddings", None) or 10**9
    return LanguageModel(base, Encoder(tokenizer, window), find_anatomy(base))
