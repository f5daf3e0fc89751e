"""Loading a decoder-only model, and finding its attention blocks by structure rather than by one name."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ia2 import world
from ia2.errors import IA2Error
from ia2.prompt import Encoder


@dataclass(frozen=True)
class Anatomy:
    """Where things are in a model, as paths that `base.get_submodule` resolves (also after PEFT has wrapped them).

    Attributes:
        base: the transformers model.
        attn_out: per layer, the output projection of the self-attention block: its output is the site `attn_out`.
        projections: every projection of the attention blocks, in order of execution within a layer.
    """

    base: PreTrainedModel
    attn_out: tuple[str, ...]
    projections: tuple[str, ...]

    @property
    def default_targets(self) -> list[str]:
        """What adapters change by default: all attention projections but the value one (paper: query, key, output).

        Where query, key and value are one fused matrix, that matrix. Given as the shortest names that are exact.
        """
        wanted = {path for path in self.projections if not path.rsplit(".", 1)[-1].startswith("v")}
        everything = [path for path, _ in self.base.named_modules()]
        for depth in range(1, 9):
            names = {".".join(path.split(".")[-depth:]) for path in wanted}
            if {path for path in everything if any(f".{path}".endswith(f".{name}") for name in names)} == wanted:
                return sorted(names)
        return sorted(wanted)


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """Find the decoder layers, the attention block in each, and its output projection, by running two tokens through.

    Raises:
        IA2Error: layers or attention blocks not found, or the model is not causal; says what was found.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    lists = {p: m for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers}
    outer = [p for p in lists if not any(p.startswith(f"{other}.") for other in lists if other != p)]
    if len(outer) != 1:
        raise IA2Error(
            f"{type(model).__name__}: found {len(outer)} lists of {n_layers} layers ({', '.join(outer) or 'none'}), "
            "expected one; is it a decoder-only language model?"
        )
    blocks = [_attention_block(layer, f"{outer[0]}.{i}") for i, layer in enumerate(lists[outer[0]])]
    order = _execution_order(model, blocks)
    return Anatomy(model, tuple(order[b][-1] for b in blocks), tuple(path for b in blocks for path in order[b]))


def _attention_block(layer: nn.Module, path: str) -> str:
    """Path of the outermost module of `layer` whose class is an attention."""
    found = [p for p, m in layer.named_modules() if p and "attention" in type(m).__name__.lower()]
    outer = [p for p in found if not any(p.startswith(f"{other}.") for other in found if other != p)]
    if len(outer) != 1:
        children = ", ".join(f"{n} ({type(m).__name__})" for n, m in layer.named_children())
        raise IA2Error(f"layer {path}: found {len(outer)} attention blocks, expected one; it has {children}")
    return f"{path}.{outer[0]}"


@torch.no_grad()
def _execution_order(model: PreTrainedModel, blocks: list[str]) -> dict[str, list[str]]:
    """Paths of the matrices of each attention block as they run; the last is the output projection."""
    ran: dict[str, list[str]] = {block: [] for block in blocks}
    handles = []
    for block in blocks:
        for name, module in model.get_submodule(block).named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim == 2:
                note = _noting(ran[block], f"{block}.{name}")
                handles.append(module.register_forward_hook(note))
    ids = torch.tensor([[0, 1], [0, 2]], device=model.device)
    try:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    if not torch.allclose(logits[0, 0], logits[1, 0], rtol=1e-3, atol=1e-3):
        raise IA2Error(
            f"{type(model).__name__}: a token changes what the model computed before it; "
            "expected a decoder-only model, this one reads both ways (an encoder?)"
        )
    if empty := [block for block, paths in ran.items() if not paths]:
        raise IA2Error(f"{empty[0]}: no projection ran in this attention block; its output cannot be read")
    return ran


def _noting(ran: list[str], path: str) -> Any:
    def note(module: nn.Module, args: Any, output: Any) -> None:
        ran.append(path)

    return note


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
