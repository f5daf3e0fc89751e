"""Where things are in a model: layers, attention and feed-forward blocks, found by watching it run, not by name."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from ia2.errors import IA2Error

N_TOKENS = 13  # of the probe: no usual number of experts, so a softmax over 13 is one over positions


@dataclass(frozen=True)
class Anatomy:
    """Paths that `base.get_submodule` resolves, also after PEFT has wrapped the modules.

    Attributes:
        base: the transformers model.
        layers: every decoder layer, in order: its output is the residual stream behind it, the site `hidden`.
        attention_layers: indices into `layers` of those that have self-attention.
        attn_out: per attention layer, the output projection of its self-attention: its output is the site `attn_out`,
            its input the site `head_out`.
        projections: every projection of the attention blocks, in order of execution within a layer.
        feed_forward: per layer, what may be its feed-forward block; see `mlp_out`.
        mlp: the linear projections of the feed-forward blocks, in order of execution, without routers and experts.
        norms: the normalisations of the layers, without those inside attention blocks.
    """

    base: PreTrainedModel
    layers: tuple[str, ...]
    attention_layers: tuple[int, ...]
    attn_out: tuple[str, ...]
    projections: tuple[str, ...]
    feed_forward: tuple[tuple[str, ...], ...]
    mlp: tuple[str, ...]
    norms: tuple[str, ...]

    @property
    def mlp_out(self) -> tuple[str, ...]:
        """Per layer, what the feed-forward block ends with: its last projection, or all of it where it has experts.

        Raises:
            IA2Error: a layer has no such block, or several.
        """
        for path, found in zip(self.layers, self.feed_forward, strict=True):
            if len(found) != 1:
                raise IA2Error(
                    f"layer {path}: found {len(found)} feed-forward blocks ({', '.join(found) or 'none'}), "
                    "expected one; the site mlp_out cannot be read in this model, use another"
                )
        return tuple(found[0] for found in self.feed_forward)

    @property
    def neurons(self) -> tuple[str, ...]:
        """Per layer, the projection that its feed-forward block ends with: what enters it are the block's neurons.

        Raises:
            IA2Error: a layer has experts, or else no one such block.
        """
        if experts := [path for path in self.mlp_out if path not in self.mlp]:
            raise IA2Error(
                f"{experts[0]} is a block of experts, without one last projection; "
                "the site neurons cannot be read in this model, use mlp_out"
            )
        return self.mlp_out

    @property
    def default_targets(self) -> list[str]:
        """What adapters change by default: all attention projections but the value one (paper: query, key, output).

        Where query, key and value are one fused matrix, that matrix. Given as the shortest names that are exact.
        """
        return self.short_names(path for path in self.projections if _name(path)[0] != "v")

    @property
    def ia3_targets(self) -> tuple[list[str], list[str]]:
        """What IA3 scales by default: keys, values, and the input of each last feed-forward projection.

        As in arXiv 2205.05638, section 3.3; where keys and values are fused with queries, all three.

        Returns:
            `target_modules` and `feedforward_modules`, as `peft.IA3Config` names them.
        """
        keys_values = [path for path in self.projections if _name(path)[0] in "kv"]
        fused = [path for path in self.projections if path not in self.attn_out]
        last = {path.rpartition(".")[0]: path for path in self.mlp}
        feedforward = self.short_names(last.values())
        return self.short_names(keys_values or fused) + feedforward, feedforward

    def short_names(self, paths: Iterable[str]) -> list[str]:
        """The shortest endings of `paths` that no other module shares, for PEFT's `target_modules`."""
        wanted = set(paths)
        everything = [path for path, _ in self.base.named_modules()]
        for depth in range(1, 9):
            names = {".".join(path.split(".")[-depth:]) for path in wanted}
            if {path for path in everything if any(f".{path}".endswith(f".{name}") for name in names)} == wanted:
                return sorted(names)
        return sorted(wanted)


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """Find the decoder layers and what is in them by running a few tokens through.

    Self-attention is where a softmax over positions runs; so linear attention and state-space layers are none.

    Raises:
        IA2Error: layers or self-attention not found, or the model is not causal; says what was found.
    """
    layers = _layers(model)
    ran = _watch(model, layers)
    blocks = [_attention(path, ran) for path in layers]
    outputs = [block.projections[-1] for block in blocks if block.projections]
    if not outputs:
        kinds = {type(child).__name__ for path in layers for child in model.get_submodule(path).children()}
        raise IA2Error(
            f"{type(model).__name__}: found no self-attention in {len(layers)} layers, so there is nothing to align; "
            f"they are made of {', '.join(sorted(kinds))}"
        )
    feed_forward = [_feed_forward(model, path, block, ran) for path, block in zip(layers, blocks, strict=True)]
    return Anatomy(
        base=model,
        layers=tuple(layers),
        attention_layers=tuple(i for i, block in enumerate(blocks) if block.projections),
        attn_out=tuple(outputs),
        projections=tuple(path for block in blocks for path in block.projections),
        feed_forward=tuple(tuple(ends) for ends, _ in feed_forward),
        mlp=tuple(path for _, projections in feed_forward for path in projections),
        norms=tuple(path for layer, block in zip(layers, blocks, strict=True) for path in _norms(model, layer, block)),
    )


def _layers(model: PreTrainedModel) -> list[str]:
    """Paths of the decoder layers: those of the one list that is as long as the configuration says."""
    n_layers = model.config.get_text_config().num_hidden_layers
    lists = {p: m for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers}
    outer = [p for p in lists if not any(p.startswith(f"{other}.") for other in lists if other != p)]
    if len(outer) != 1:
        raise IA2Error(
            f"{type(model).__name__}: found {len(outer)} lists of {n_layers} layers ({', '.join(outer) or 'none'}), "
            "expected one; is it a decoder-only language model?"
        )
    return [f"{outer[0]}.{i}" for i in range(n_layers)]


class _Watch(TorchFunctionMode):
    """Notes what runs inside modules, in order: matrices, and softmaxes over positions by their innermost module."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.matrices: list[str] = []
        self.softmaxes: list[tuple[str, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if self.inside and (
            (name == "softmax" and args[0].shape[-2:] in ((N_TOKENS, N_TOKENS), (N_TOKENS, N_TOKENS + 1)))
            or (name == "scaled_dot_product_attention" and args[0].shape[-2] == N_TOKENS)
        ):
            self.softmaxes.append((self.inside[-1], len(self.matrices)))
        return func(*args, **(kwargs or {}))

    def enter(self, path: str, module: nn.Module, args: Any) -> None:
        self.inside.append(path)

    def leave(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        self.inside.pop()
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding):
            self.matrices.append(path)


@torch.no_grad()
def _watch(model: PreTrainedModel, layers: list[str]) -> _Watch:
    """Run a few tokens through; a kernel hides its softmax, so attention is computed in PyTorch for the while."""
    watch = _Watch()
    ids = torch.arange(N_TOKENS, device=model.device).remainder(model.config.get_text_config().vocab_size).repeat(2, 1)
    ids[1, 1:] = 0
    implementation = model.config._attn_implementation
    with ExitStack() as stack:
        if implementation not in (None, "eager", "sdpa"):
            model.set_attn_implementation("eager")
            stack.callback(model.set_attn_implementation, implementation)
        for layer in layers:
            for path, module in model.get_submodule(layer).named_modules(prefix=layer):
                stack.callback(module.register_forward_pre_hook(partial(watch.enter, path)).remove)
                stack.callback(module.register_forward_hook(partial(watch.leave, path)).remove)
        stack.enter_context(watch)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    change_T = (logits[0] - logits[1]).float().abs().amax(-1)  # none at the first token, but for rounding
    if change_T[0] > max(1e-4, 4 * torch.finfo(logits.dtype).eps) * change_T.max():
        raise IA2Error(
            f"{type(model).__name__}: a token changes what the model computed before it; "
            "expected a decoder-only model, this one reads both ways (an encoder?)"
        )
    return watch


@dataclass(frozen=True)
class _Block:
    """A self-attention block and its projections in order of execution; empty where a layer has none."""

    path: str = ""
    projections: tuple[str, ...] = ()


def _attention(layer: str, ran: _Watch) -> _Block:
    """The smallest module of a layer that has its softmax over positions and a projection that runs behind it."""
    softmaxes = {path: n for path, n in ran.softmaxes if _within(path, layer)}
    if not softmaxes:
        return _Block()
    if len(softmaxes) > 1:
        raise IA2Error(f"layer {layer}: found {len(softmaxes)} attention blocks ({', '.join(softmaxes)}), expected one")
    ((path, n_before),) = softmaxes.items()
    while path != layer:
        if any(_within(matrix, path) for matrix in ran.matrices[n_before:]):
            return _Block(path, tuple(dict.fromkeys(matrix for matrix in ran.matrices if _within(matrix, path))))
        path = path.rpartition(".")[0]
    raise IA2Error(f"layer {layer}: found no projection behind the attention in {next(iter(softmaxes))}, expected one")


def _within(path: str, outer: str) -> bool:
    return f"{path}.".startswith(f"{outer}.")


def _feed_forward(model: PreTrainedModel, layer: str, attention: _Block, ran: _Watch) -> tuple[list[str], list[str]]:
    """What a layer's feed-forward block ends with, and its linear projections.

    The block is a child of the layer that has matrices and mixes no positions; where no such child has others in it,
    it is all the matrices that are children themselves. More than one end: several blocks were found.
    """
    matrices = list(dict.fromkeys(matrix for matrix in ran.matrices if _within(matrix, layer)))
    ends: list[str] = []
    projections: list[str] = []
    children: list[str] = []
    for name, child in model.get_submodule(layer).named_children():
        path = f"{layer}.{name}"
        inside = [matrix for matrix in matrices if _within(matrix, path)]
        if not inside or _within(attention.path, path) or _mixes_positions(child):
            continue
        if inside == [path]:
            children.append(path)
        elif _has_experts(child):
            ends.append(path)
            projections += _shared_experts(model, inside)
        else:
            ends.append(inside[-1])
            projections += inside
    children.sort(key=matrices.index)
    return (ends, projections) if ends else (children[-1:], children)


def _mixes_positions(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv1d) or "attention" in type(m).__name__.lower() for m in module.modules())


def _has_experts(module: nn.Module) -> bool:
    fused = any(parameter.ndim == 3 for parameter in module.parameters())
    return fused or any(isinstance(m, nn.ModuleList) for m in module.modules())


def _shared_experts(model: PreTrainedModel, matrices: list[str]) -> list[str]:
    """Of the matrices that ran in a block of experts, those of experts that all tokens go through.

    Matrices of one module that lead back to the model's width are an expert; others are a router. Experts in a list are
    those that only some tokens go through.
    """
    width = model.config.get_text_config().hidden_size
    last = {matrix.rpartition(".")[0]: model.get_submodule(matrix) for matrix in matrices}
    shared = {
        path
        for path, module in last.items()
        if getattr(module, "out_features", None) == width
        and not isinstance(model.get_submodule(path.rpartition(".")[0]), nn.ModuleList)
    }
    return [matrix for matrix in matrices if matrix.rpartition(".")[0] in shared]


def _norms(model: PreTrainedModel, layer: str, attention: _Block) -> list[str]:
    """Modules of a layer whose weight is a vector of the model's width, outside of what mixes positions."""
    width = model.config.get_text_config().hidden_size
    mixers = [attention.path]
    for name, child in model.get_submodule(layer).named_children():
        if _mixes_positions(child) and not _within(attention.path, f"{layer}.{name}"):
            mixers.append(f"{layer}.{name}")
    found = []
    for path, module in model.get_submodule(layer).named_modules(prefix=layer):
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == (width,) and not any(_within(path, m) for m in mixers):
            found.append(path)
    return found
