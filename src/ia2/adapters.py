"""Adapters on the frozen base: PEFT's own by name, each with targets found by structure, and none at all (`full`)."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    PeftType,
    PromptLearningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from ia2.anatomy import Anatomy
from ia2.errors import IA2Error, choose
from ia2.files import damaged, read_json, sha256, write_json, written_aside
from ia2.models import LanguageModel
from ia2.processes import is_shared
from ia2.prompt import Prompt

N_VIRTUAL = 8
PROMPT_LEARNING = {name for name, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items() if issubclass(kind, PromptLearningConfig)}
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")  # of a whole model, of an adapter


@dataclass(frozen=True)
class Adapter:
    """How an adapter is set up.

    Attributes:
        peft_type: PEFT's name of it; empty for full fine-tuning.
        what: for people.
        learning_rate: those tried if no other are given.
        options: of PEFT's configuration, by default, for a model and the teacher's first prompt.
    """

    peft_type: str
    what: str
    learning_rate: tuple[float, ...]
    options: Callable[[LanguageModel, Prompt | None], dict[str, Any]] = lambda lm, context: {}


def _lora(**more: Any) -> Callable[[LanguageModel, Prompt | None], dict[str, Any]]:
    return lambda lm, context: {"r": 8, "lora_alpha": 8, **more}


def _ia3(lm: LanguageModel, context: Prompt | None) -> dict[str, Any]:
    targets, feedforward = lm.anatomy.ia3_targets
    return {"target_modules": targets, "feedforward_modules": feedforward}


def _virtual(lm: LanguageModel, context: Prompt | None) -> dict[str, Any]:
    return {"num_virtual_tokens": N_VIRTUAL}


def _cpt(lm: LanguageModel, context: Prompt | None) -> dict[str, Any]:
    """Virtual tokens that begin as the context; CPT's types are 1 and 3 for form, 2 for queries, 4 for responses."""
    prompt = _taught("cpt", context)
    ids, kinds = [*lm.encoder.bos], [1] * len(lm.encoder.bos)
    n_seen = 0
    for piece in lm.encoder.pieces(prompt)[0]:
        query, response = prompt.demos[n_seen] if n_seen < len(prompt.demos) else ("", "")
        kind = {query: 2, response: 4}.get(piece, 3)
        ids += lm.encoder.piece(piece)
        kinds += [4 * n_seen + kind] * (len(ids) - len(kinds))
        n_seen += kind == 4
    return {"cpt_token_ids": ids, "cpt_mask": [1] * len(ids), "cpt_tokens_type_mask": kinds}


def _cartridge(lm: LanguageModel, context: Prompt | None) -> dict[str, Any]:
    return {"num_virtual_tokens": len(_context_ids(lm, context))}


def _taught(name: str, context: Prompt | None) -> Prompt:
    if context is None or not context.context:
        raise IA2Error(f"the adapter '{name}' begins as the teacher's context, and there is none; choose another one")
    return context


def _context_ids(lm: LanguageModel, context: Prompt | None) -> list[int]:
    pieces = lm.encoder.pieces(_taught("cartridge", context))[0]
    return [*lm.encoder.bos, *(i for piece in pieces for i in lm.encoder.piece(piece))]


_RATES, _SMALL, _LARGE = (3e-4, 1e-3, 3e-3), (1e-5, 3e-5, 1e-4), (1e-2, 1e-1)
ADAPTERS: dict[str, Adapter] = {
    "lora": Adapter("LORA", "low-rank updates (the paper's default)", _RATES, _lora()),
    "rslora": Adapter("LORA", "LoRA scaled by 1/sqrt(r)", _RATES, _lora(use_rslora=True)),
    "dora": Adapter("LORA", "LoRA of the direction, and a magnitude", _RATES, _lora(use_dora=True)),
    "ia3": Adapter("IA3", "factors on keys, values and feed-forward", (1e-3, 1e-2, 1e-1), _ia3),
    "vera": Adapter("VERA", "scaled fixed random projections", _LARGE),
    "oft": Adapter("OFT", "orthogonal rotations of the weights", _RATES),
    "loha": Adapter("LOHA", "Hadamard products of low-rank updates", _RATES),
    "peanut": Adapter("PEANUT", "a non-linear bottleneck fed by the weights", _RATES),
    "ln-tuning": Adapter("LN_TUNING", "the layers' norms", (1e-3, 1e-2)),
    "beft": Adapter("BEFT", "biases", (1e-3, 1e-2, 1e-1)),
    "prompt-tuning": Adapter("PROMPT_TUNING", "virtual tokens before the prompt", _LARGE, _virtual),
    "prefix-tuning": Adapter("PREFIX_TUNING", "virtual keys and values in every layer", _LARGE, _virtual),
    "cpt": Adapter("CPT", "virtual tokens that begin as the context", (1e-3, 1e-2), _cpt),
    "cartridge": Adapter("CARTRIDGE", "keys and values that begin as the context's", (1e-3, 1e-2), _cartridge),
    "full": Adapter("", "all weights of the model, without an adapter", _SMALL),
}


def find_adapter(name: str) -> Adapter:
    """The entry of this name, or any other of PEFT's methods by its PEFT type.

    Raises:
        IA2Error: there is none; names the nearest.
    """
    others = {of.value.lower().replace("_", "-"): of.value for of in PEFT_TYPE_TO_CONFIG_MAPPING}
    name = choose("adapter", name, [*ADAPTERS, *(other for other in others if other not in ADAPTERS)])
    return ADAPTERS.get(name) or Adapter(others[name], "", _RATES)


def peft_config(lm: LanguageModel, name: str, options: dict[str, Any], context: Prompt | None) -> Any:
    """PEFT's configuration: its own defaults, targets found by structure, this project's defaults, then `options`."""
    adapter = find_adapter(name)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(adapter.peft_type)]
    known = {field.name for field in dataclasses.fields(kind)}
    for option in options:
        choose(f"option of the adapter '{name}'", option, sorted(known))
    values = {"task_type": "CAUSAL_LM", **_targets(lm.anatomy, adapter.peft_type, known)}
    values |= {**adapter.options(lm, context), **options}
    try:
        config = kind(**values)
    except (ValueError, TypeError) as error:
        raise IA2Error(f"adapter '{name}': {' '.join(str(error).split())}") from error
    _check_keeps_base(config, f"adapter '{name}'")
    return config


def _check_keeps_base(config: PeftConfig, what: str) -> None:
    """The base is the teacher, and that of other adapters."""
    begins = str(getattr(config, "init_lora_weights", "")).lower()
    changes = {
        "bias": getattr(config, "bias", "none") != "none",
        "init_lora_weights": begins.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")),
        "layer_replication": bool(getattr(config, "layer_replication", None)),
    }
    for option, does in changes.items():
        if does:
            value = getattr(config, option)
            raise IA2Error(f"{what}: {option} is {value!r}, which changes the base model itself; leave it out")


def _targets(anatomy: Anatomy, peft_type: str, known: set[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if "target_modules" in known:
        norms = peft_type == "LN_TUNING"
        values["target_modules"] = anatomy.short_names(anatomy.norms) if norms else anatomy.default_targets
    if "fan_in_fan_out" in known:
        values["fan_in_fan_out"] = isinstance(anatomy.base.get_submodule(anatomy.attn_out[0]), Conv1D)
    return values


class FullModel(nn.Module):
    """The base with all its weights trainable, behind the part of PEFT's interface that is used here.

    `weights` holds a copy of each set of weights by name, the base's own under None.
    """

    def __init__(self, base: nn.Module, folders: dict[str, Path]):
        super().__init__()
        self.base = base
        self.weights: dict[str | None, dict[str, Tensor]] = {None: _copied(base)}
        self.weights |= {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
        base.requires_grad_(True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's."""
        return self.base(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base's."""
        return self.base.generate(*args, **kwargs)  # type: ignore[operator]

    @torch.no_grad()
    def set_adapter(self, name: str | None) -> None:
        """Put these weights into the base; those that are tied to another are not stored, and need not be."""
        for key, weight in self.base.named_parameters():
            if key in self.weights[name]:
                weight.copy_(self.weights[name][key])

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within the block, the base as it was."""
        current = _copied(self.base)
        self.set_adapter(None)
        try:
            yield
        finally:
            self.weights["current"] = current
            self.set_adapter("current")
            del self.weights["current"]

    def save_pretrained(self, folder: str) -> None:
        """A whole model, which `AutoModelForCausalLM.from_pretrained` loads."""
        self.base.save_pretrained(folder)  # type: ignore[operator]


def _copied(base: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in base.named_parameters()}


@contextmanager
def new_adapter(
    lm: LanguageModel,
    name: str = "lora",
    options: dict[str, Any] | None = None,
    seed: int = 0,
    start: Path | None = None,
    context: Prompt | None = None,
) -> Iterator[Any]:
    """Within the block, `lm.model` is the base with a trainable adapter on it; after it, the base as it was.

    Args:
        lm: the frozen base; an adapter is kept in float32 whatever the base is in.
        name: see `ADAPTERS`; any other of PEFT's by its type.
        options: of PEFT's configuration, over this project's defaults.
        seed: of its initial weights.
        start: an adapter folder to begin from, in place of fresh weights.
        context: the teacher's prompt that `cpt` and `cartridge` begin as.

    Raises:
        IA2Error: unknown name or option, or an adapter that this model cannot take.
    """
    set_seed(seed)
    if is_shared(lm.base) and (name == "full" or find_adapter(name).peft_type in PROMPT_LEARNING):
        raise IA2Error(f"the adapter '{name}' needs whole weights, and here processes share them (FSDP); choose lora")
    if start:
        _whole(start)
    with _base_kept(lm):
        if name == "full":
            lm.model = FullModel(lm.base, {"start": start} if start else {})
            lm.model.set_adapter("start" if start else None)
        elif start:
            lm.model = _continued(lm, start)
        else:
            lm.model = _fresh(lm, name, options or {}, context)
        for weight in lm.model.parameters():
            if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
                raise IA2Error(
                    f"the adapter '{name}' would train weights in {weight.dtype}, where small steps are rounded away; "
                    "use --set dtype=float32"
                )
        yield lm.model


def _fresh(lm: LanguageModel, name: str, options: dict[str, Any], context: Prompt | None) -> PeftModel:
    config = peft_config(lm, name, options, context)
    try:
        with peft_warnings_ignored():
            model: PeftModel = get_peft_model(lm.base, config)
        if config.is_prompt_learning:
            ids = torch.zeros((2, 2), dtype=torch.long, device=lm.device)
            with torch.no_grad():  # some models cannot compute behind virtual tokens
                model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise IA2Error(
            f"{type(lm.base).__name__} cannot take the adapter '{name}' ({' '.join(str(error).split())[:200]}); "
            f"choose another, such as lora, or give it other targets with adapter_options"
        ) from error
    if config.peft_type == PeftType.CARTRIDGE:
        ids = torch.tensor([_context_ids(lm, context)], device=lm.device)
        with torch.no_grad():
            cache = lm.base(input_ids=ids, use_cache=True).past_key_values
        initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
    return model


def _continued(lm: LanguageModel, start: Path) -> PeftModel:
    """The adapter of a folder, to be trained; PEFT's own loading would not train virtual tokens."""
    config = PeftConfig.from_pretrained(str(start))
    _check_keeps_base(config, str(start))
    config.inference_mode = False
    with peft_warnings_ignored():
        model: PeftModel = get_peft_model(lm.base, config)
    weights = load_peft_weights(str(start), device=str(lm.device))
    set_peft_model_state_dict(model, weights)
    now = get_peft_model_state_dict(model)
    if not all(torch.equal(now[name], weight) for name, weight in weights.items()):
        raise IA2Error(
            f"{start}: PEFT saves {config.peft_type.value} only in part, so that it cannot be trained further"
        )
    return model


@contextmanager
def loaded_adapters(lm: LanguageModel, folders: dict[str, Path]) -> Iterator[None]:
    """Within the block, the adapters of these folders, all of one kind, are on the base; choose one with `using`.

    Raises:
        IA2Error: a folder holds no adapter, or one that does not fit the model.
    """
    if not folders:
        yield
        return
    full = [path for path in map(_whole, folders.values()) if path.name == "model.safetensors"]
    with _base_kept(lm):
        lm.model = FullModel(lm.base, folders) if full else _loaded(lm, folders).eval()
        yield


def _loaded(lm: LanguageModel, folders: dict[str, Path]) -> PeftModel:
    (first, folder), *others = folders.items()
    try:
        for of in folders.values():
            _check_keeps_base(PeftConfig.from_pretrained(str(of)), str(of))
        with peft_warnings_ignored():
            model = PeftModel.from_pretrained(lm.base, str(folder), adapter_name=first)
            for name, folder in others:
                model.load_adapter(str(folder), adapter_name=name)
    except (torch.OutOfMemoryError, IA2Error):
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise IA2Error(
            f"{folder}: no adapter of this {type(lm.base).__name__} ({' '.join(str(error).split())[:200]}); "
            "expected a PEFT folder that was trained on the same model"
        ) from error
    return model


def _whole(folder: Path) -> Path:
    """The weights in an adapter folder, as they were saved.

    Raises:
        IA2Error: there are none, or a file was cut off or changed.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise IA2Error(f"{folder}: no adapter_model.safetensors; expected a PEFT adapter folder")
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise damaged(path, error, folder) from None
    record = folder / "training.json"
    digests = read_json(record, folder).get("sha256", {}) if record.is_file() else {}
    for name, digest in digests.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise damaged(folder / name, "its checksum is another", folder)
    return path


@contextmanager
def peft_warnings_ignored() -> Iterator[None]:
    """Within the block, PEFT says nothing of what is meant so."""
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 by a name that is on its way out; RMS norms are norms; biases may be new.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "Unsupported layer type .*Norm", UserWarning)
        warnings.filterwarnings("ignore", "Detected that the base layer has no bias term", UserWarning)
        yield


@contextmanager
def _base_kept(lm: LanguageModel) -> Iterator[None]:
    """On every way out of the block the base is as it was: PEFT's own `unload` leaves `modules_to_save` in it."""
    own = [(module, name, child) for module in lm.base.modules() for name, child in module.named_children()]
    try:
        yield
    finally:
        if isinstance(lm.model, FullModel):
            lm.model.set_adapter(None)
        for module, name, child in own:
            setattr(module, name, child)
        vars(lm.base).pop("peft_config", None)
        lm.base.requires_grad_(False).eval()
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


def save_adapter(model: Any, folder: Path, record: dict[str, Any]) -> None:
    """Write what `from_pretrained` loads, a plain PEFT folder or a whole model, with `record` in training.json."""
    with written_aside(folder) as aside:
        model.save_pretrained(str(aside))
        digests = {
            path.name: sha256(path) for path in sorted(aside.iterdir()) if path.suffix in (".json", ".safetensors")
        }
        write_json(aside / "training.json", record | {"sha256": digests})


def n_trainable(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
