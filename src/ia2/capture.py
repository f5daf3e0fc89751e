"""Reading what a model computes at the positions that predict a response: one hooked forward, only those kept."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ia2.anatomy import Anatomy
from ia2.errors import IA2Error
from ia2.prompt import TokenBatch, Tokens

Site = Literal["attn_out", "logits"]
TOKENS_PER_BATCH = 8192


def read(model: nn.Module, anatomy: Anatomy, batch: TokenBatch, sites: Collection[Site]) -> dict[Site, Tensor]:
    """One forward pass of `model`; the values of `sites` at the P response positions of the batch, in row-major order.

    The head is applied to response positions alone, and to none if `logits` is not among `sites`. Hooks are removed
    on every way out. Differentiable; in the model's own precision.

    Args:
        model: the model to call: `anatomy.base`, or a wrapper that shares its modules (PEFT, DDP).
        anatomy: where the sites are.
        batch: right-padded prompts with their responses.
        sites: `attn_out` (every layer's self-attention output, after its output projection) and/or `logits`.

    Returns:
        `attn_out` (P, L, D) and/or `logits` (P, V).
    """
    mask_BT = batch.response_mask
    acts_L: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.shape[:2] != mask_BT.shape:
            raise IA2Error(
                f"attention ran over {tuple(output.shape[:2])} positions where the batch has {tuple(mask_BT.shape)}: "
                "this adapter adds virtual tokens, which cannot be aligned; use one that adds none, such as LoRA"
            )
        acts_L.append(output[mask_BT])

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTD = args[0]
        return (hidden_BTD[mask_BT][None] if "logits" in sites else hidden_BTD[:1, :0], *args[1:])

    with ExitStack() as hooks:
        if "attn_out" in sites:
            for path in anatomy.attn_out:
                hooks.callback(anatomy.base.get_submodule(path).register_forward_hook(keep).remove)
        hooks.callback(anatomy.base.get_output_embeddings().register_forward_pre_hook(select).remove)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    values: dict[Site, Tensor] = {}
    if "attn_out" in sites:
        if len(acts_L) != len(anatomy.attn_out):
            raise RuntimeError(f"{len(acts_L)} attention outputs were seen in {len(anatomy.attn_out)} layers")
        values["attn_out"] = torch.stack(acts_L, dim=1)
    if "logits" in sites:
        values["logits"] = logits[0]
    return values


def batches(rows: Sequence[Tokens], max_tokens: int = TOKENS_PER_BATCH) -> Iterator[list[int]]:
    """Indices of rows in batches of similar length, of at most `max_tokens` tokens with padding, or one row."""
    chosen: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i].ids)):
        if chosen and len(rows[chosen[0]].ids) * (len(chosen) + 1) > max_tokens:
            yield chosen
            chosen = []
        chosen.append(i)
    if chosen:
        yield chosen
