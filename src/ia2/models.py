"""Loading a decoder-only model."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import patch_environment  # type: ignore[import-untyped]
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.distributed.configuration_utils import DistributedConfig

from ia2 import world
from ia2.anatomy import Anatomy, find_anatomy
from ia2.chat import Chat
from ia2.errors import IA2Error, choose
from ia2.processes import processes, shares_weights
from ia2.prompt import Encoder

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("4bit", "8bit")


@dataclass
class LanguageModel:
    """A frozen base model with its tokenizer; `model` is the base, or the PEFT model around it."""

    base: PreTrainedModel
    encoder: Encoder
    anatomy: Anatomy
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.base
        self._own = frozenset(self.base.state_dict())

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
        """SHA-256 of all that decides what the base computes; adapters on it do not count.

        That is its configuration, the implementation of attention, and each weight's name, type, shape and bytes.
        """
        digest = hashlib.sha256()
        config = self.base.config.to_diff_dict()
        del config["transformers_version"]
        digest.update(json.dumps([config, self.base.config._attn_implementation], sort_keys=True, default=str).encode())
        for name, weight in sorted(self.base.state_dict().items()):
            own = re.sub(r"\.(base_layer|original_module|token_adapter)\b", "", name)
            if own in self._own:
                digest.update(f"{own} {weight.dtype} {tuple(weight.shape)}".encode())
                digest.update(_whole(weight).cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_model(
    name: str,
    device: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    chat: Chat = "none",
) -> LanguageModel:
    """Load an embedded model (`tiny`, `tiny-gpt2`), a folder, or a Hugging Face hub id.

    Weights come from safetensors only.

    Args:
        name: which model.
        device: where to put it; by default this process's accelerator if there is one. With `accelerate launch
            --use_fsdp` every process holds a part of each weight.
        dtype: `float32`, `bfloat16` or `float16`; by default as it was saved.
        quantization: `4bit` or `8bit`, by bitsandbytes.
        attn_implementation: as transformers names it: `sdpa`, `eager`, `flash_attention_2`, ...
        chat: whether prompts take the form of the tokenizer's chat template: `none`; `turns`, each demo a turn of its
            own; or `message`, all demos and the query in one.
        trust_remote_code: whether to run Python code that comes with the model.

    Raises:
        IA2Error: nothing of this name, not a decoder-only language model, or a library that it needs is missing.
    """
    path = str(world.MODELS.get(name, name))
    _check_folder(path)
    device = device or str(processes().device)
    _check_device(device)
    torch_dtype = "auto" if dtype is None else getattr(torch, choose("dtype", dtype, DTYPES))
    quantizer = _quantization(quantization)
    shares = DistributedConfig(fsdp_size=processes().num_processes) if shares_weights() else None
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with patch_environment(ACCELERATE_USE_FSDP="false"):  # each process reads its share, and no more
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=torch_dtype,
                device_map={"": device},
                distributed_config=shares,
                quantization_config=quantizer,
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are an error below
                output_loading_info=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except ImportError as error:
        raise IA2Error(f"the model '{name}' needs a package that is not installed: {_line(error)}") from error
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        known = ", ".join(world.MODELS)
        flag = "; the flag is --trust-remote-code" if "trust_remote_code" in str(error) else ""
        raise IA2Error(
            f"cannot load the model '{name}' ({known}, a folder or a hub id was expected): {_line(error)}{flag}"
        ) from error
    base, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise IA2Error(
            f"the model '{name}' lacks {len(missing)} weights of a {type(base).__name__} ({missing[0]}, ...); "
            "expected a whole language model, saved by save_pretrained"
        )
    if others := sorted(loading["mismatched_keys"]):
        raise IA2Error(
            f"the model '{name}' has {len(others)} weights of other shapes than its config.json says ({others[0][0]}, "
            "...); expected both as save_pretrained wrote them"
        )
    return wrap_model(base, tokenizer, chat)


def _whole(weight: Tensor) -> Tensor:
    """A weight of which every process may hold a part."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight.detach()


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise IA2Error(f"no device '{device}' here ({_line(error)[:80]}); expected cpu, cuda, mps, ...") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _check_folder(path: str) -> None:
    folder = Path(path)
    if (folder.exists() or path.startswith((".", "/", "~"))) and not (folder / "config.json").is_file():
        raise IA2Error(f"{path}: not a model folder (no config.json); expected one written by save_pretrained")
    if folder.exists() and not list(folder.glob("*.safetensors")):
        others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
        raise IA2Error(
            f"{path}: found no weights in safetensors, but {', '.join(others) or 'none at all'}; files of other forms "
            "can run code when they are opened and are not read: save the model again with save_pretrained"
        )


def _quantization(name: str | None) -> BitsAndBytesConfig | None:
    if name is None:
        return None
    choose("quantization", name, QUANTIZATIONS)
    if find_spec("bitsandbytes") is None:
        raise IA2Error(f"quantization '{name}' needs bitsandbytes, which is not installed: pip install bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=name == "4bit", load_in_8bit=name == "8bit")


def wrap_model(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: Chat = "none") -> LanguageModel:
    """A `LanguageModel` of a transformers model that is already in memory.

    It is frozen, and its dropout is off for good: teacher and student must compute the same.

    Raises:
        IA2Error: there is an adapter on it, or it is no decoder-only language model.
    """
    if isinstance(base, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise IA2Error(
            "the model has an adapter on it; expected the base alone: load it again, or unload() its PeftModel"
        )
    base.eval().requires_grad_(False)
    parts: list[nn.Module | PreTrainedConfig] = [*base.modules(), *_configs(base.config)]
    for part in parts:
        _without_noise(part)
    window = getattr(base.config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    return LanguageModel(base, Encoder(tokenizer, window, chat), find_anatomy(base))


def _configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for name in config.sub_configs:
        yield from _configs(getattr(config, name))


def _without_noise(part: nn.Module | PreTrainedConfig) -> None:
    """Dropout, and the jitter of routers, to zero; of configurations too, since some models look there as they run."""
    for key, value in list(vars(part).items()):
        noise = "drop" in key or "jitter" in key or (key == "p" and isinstance(part, nn.Dropout))
        if noise and isinstance(value, float):
            setattr(part, key, 0.0)
