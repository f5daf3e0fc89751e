"""Adapters side by side: one pass over the base, in which the g-th slice of a batch is computed with the g-th adapter.

With a few examples a batch is a few rows, and the time of a step goes to reading the base's weights and to overhead:
a whole grid of trainings then costs little more than one of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn

Weights = dict[str, Tensor]


class Bank:
    """The weights that are trained at once: those of one adapter of any kind, or of several plain LoRA adapters.

    Attributes:
        weights: of each adapter by name, as the model with that adapter alone has them.
        active: the adapters that the next pass is computed with; its rows are as many equal slices, in this order.
    """

    def __init__(self, model: nn.Module, starts: Sequence[Weights]):
        """Put the adapter on `model` to `starts[0]`, if it is the only one; else copy them all.

        Args:
            model: with an adapter, of which `can_bank` is true where there are several starts.
            starts: the weights to begin with, as `trainable_copy` gives them.
        """
        self.active: Sequence[int] = range(len(starts))
        self._layers: dict[str, lora.Linear] = {}
        if len(starts) == 1:
            restore(model, starts[0])
            self._leaves = trainable(model)
            self.weights: list[dict[str, Tensor]] = [dict(self._leaves)]
        else:
            self._layers = _lora_layers(model)
            self._leaves = {name: nn.Parameter(torch.stack([of[name] for of in starts])) for name in starts[0]}
            self.weights = [{name: leaf.detach()[g] for name, leaf in self._leaves.items()} for g in self.active]
        self.clear_gradients()

    def parameters(self, first: int, end: int) -> list[nn.Parameter]:
        """What an optimiser trains of the adapters from `first` to before `end`; parts of what is computed with."""
        return [_part(leaf, first, end) if self._layers else leaf for leaf in self._leaves.values()]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within the block, the model computes with the active adapters."""
        for path, layer in self._layers.items():
            vars(layer)["forward"] = partial(self._forward, path, layer)
        try:
            yield
        finally:
            for layer in self._layers.values():
                del vars(layer)["forward"]

    def _forward(self, path: str, layer: lora.Linear, x: Tensor) -> Tensor:
        """As `lora.Linear.forward`, with the A (G, r, in) and B (G, out, r) of the active adapters."""
        base: Tensor = layer.base_layer(x)
        if layer.disable_adapters:
            return base
        A_GRI, B_GOR = (self._active(self._leaves[f"{path}.lora_{part}.default.weight"]) for part in "AB")
        x_GPI, base_GPO = (of.to(A_GRI.dtype).reshape(len(self.active), -1, of.shape[-1]) for of in (x, base))
        result_GPO = torch.baddbmm(base_GPO, x_GPI @ A_GRI.mT, B_GOR.mT, alpha=layer.scaling["default"])
        return result_GPO.view(base.shape).to(base.dtype)

    def _active(self, leaf_GXY: nn.Parameter) -> Tensor:
        return leaf_GXY if len(self.active) == len(leaf_GXY) else leaf_GXY[list(self.active)]

    def clear_gradients(self) -> None:
        """In place, since those of the single adapters are parts of them."""
        for leaf in self._leaves.values():
            if leaf.grad is not None:
                leaf.grad.zero_()

    def copy(self, g: int) -> Weights:
        """A copy of one adapter's weights by name."""
        return {name: weight.detach().clone() for name, weight in self.weights[g].items()}

    @torch.no_grad()
    def restore(self, g: int, weights: Weights) -> None:
        """Put a copy back."""
        _put(self.weights[g], weights)


def _part(leaf_GXY: nn.Parameter, first: int, end: int) -> nn.Parameter:
    """Some adapters' part of a weight, and of its gradient."""
    if leaf_GXY.grad is None:
        leaf_GXY.grad = torch.zeros_like(leaf_GXY)
    part = nn.Parameter(leaf_GXY.detach()[first:end])
    part.grad = leaf_GXY.grad[first:end]
    return part


def can_bank(model: nn.Module) -> bool:
    """Whether all that is trained is plain LoRA of linear layers, without dropout, so that several can share a pass.

    The head is none of these: it sees response positions alone, of which slices have as many as they have.
    """
    layers = _lora_layers(model)
    head = model.get_output_embeddings() if layers else None  # type: ignore[operator]
    plain = all(
        not layer.lora_variant and isinstance(layer.lora_dropout["default"], nn.Identity) and layer is not head
        for layer in layers.values()
    )
    return plain and trainable(model).keys() == {f"{path}.lora_{k}.default.weight" for path in layers for k in "AB"}


def _lora_layers(model: nn.Module) -> dict[str, lora.Linear]:
    return {path: module for path, module in model.named_modules() if type(module) is lora.Linear}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable weights by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def trainable_copy(model: nn.Module) -> Weights:
    """A copy of the trainable weights by name."""
    return {name: weight.detach().clone() for name, weight in trainable(model).items()}


@torch.no_grad()
def restore(model: nn.Module, weights: Weights) -> None:
    """Put a copy back, every tensor of it."""
    _put(trainable(model), weights)


def _put(own: dict[str, Any], weights: Weights) -> None:
    if own.keys() != weights.keys():
        raise RuntimeError("the weights kept are not those of this model")
    for name, weight in own.items():
        weight.copy_(weights[name])
