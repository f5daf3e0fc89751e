"""Reading what a model computes at the positions that predict a response: one hooked forward, only those kept."""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from ia2.anatomy import Anatomy
from ia2.errors import IA2Error, choose
from ia2.processes import is_shared
from ia2.prompt import Positions, TokenBatch, Tokens

Site = Literal["attn_out", "head_out", "mlp_out", "neurons", "hidden", "logits"]
SITES: tuple[Site, ...] = get_args(Site)
BEFORE: frozenset[Site] = frozenset({"head_out", "neurons"})  # read where they enter a module, not where they leave it
AT_ONCE = 2**14  # words of the vocabulary whose weights are held in float32
_PLACES: dict[Site, Callable[[Anatomy], dict[int, str]]] = {  # by decoder layer, from 0: the module
    "attn_out": lambda of: dict(zip(of.attention_layers, of.attn_out, strict=True)),
    "head_out": lambda of: dict(zip(of.attention_layers, of.attn_out, strict=True)),
    "mlp_out": lambda of: dict(enumerate(of.mlp_out)),
    "neurons": lambda of: dict(enumerate(of.neurons)),
    "hidden": lambda of: dict(enumerate(of.layers)),
    "logits": lambda of: {},
}


@dataclass(frozen=True)
class Selection:
    """Which sites are read, in which decoder layers (all if None), at which positions."""

    sites: frozenset[Site]
    layers: frozenset[int] | None = None
    positions: Positions = "response"

    def __post_init__(self) -> None:
        for site in self.sites:
            choose("site", site, SITES)

    def size(self, row: Tokens, site: Site) -> int:
        """The number of a row's positions that are read at a site."""
        return row.n_response if site == "logits" else len(row.aligned(self.positions))


def read(
    model: nn.Module,
    anatomy: Anatomy,
    batch: TokenBatch,
    sites: Collection[Site],
    layers: Collection[int] | None = None,
    prefix: Cache | None = None,
) -> dict[Site, Tensor]:
    """One forward pass of `model`; the values of `sites`, positions in row-major order of the batch.

    Activations are those at the `aligned_mask` of the batch, logits those at the P positions that predict a response
    token: the head is applied to these alone. Without `logits`, the pass ends behind the last site that is read: no
    head, nothing that no site needs; where several processes train it goes to the end, of no logits. Hooks are
    removed on every way out. Differentiable; in the model's own precision.

    Args:
        model: the model to call: `anatomy.base`, or a wrapper that shares its modules (PEFT, DDP). Tokens that it adds
            before the batch's own (prompt tuning) are not counted as positions.
        anatomy: where the sites are.
        batch: right-padded prompts with their responses.
        sites: `attn_out` (self-attention, after its output projection: the paper's), `head_out` (before it, heads side
            by side), `mlp_out` (feed-forward block), `hidden` (residual stream behind the layer), `logits`.
        layers: decoder layers to read, from 0; all if None. Layers without attention have no `attn_out`, `head_out`.
        prefix: keys and values of tokens before the batch's own, for each of its rows; it is added to.

    Returns:
        Activations (P, L, D), L the layers that have the site in ascending order; `logits` (P, V).
    """
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    places = [(site, path) for site in SITES if site in sites for path in paths(anatomy, site, layers)]
    n_missing = len(places)
    n_before = prefix.get_seq_length() if prefix else 0
    mask = torch.nn.functional.pad(batch.attention_mask, (n_before, 0), value=1)
    layer_modules = (anatomy.base.get_submodule(path) for path in anatomy.layers)
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in layer_modules)
    later = checkpointed and torch.is_grad_enabled()  # in the backward pass a layer runs again, without its hooks
    several = is_shared(anatomy.base) or hasattr(model, "module")  # FSDP, or the wrapper of DDP and DeepSpeed
    ends_early = "logits" not in sites and not several

    aligned = batch.aligned_mask.nonzero(as_tuple=True)

    def at_positions(output_BTD: Tensor) -> Tensor:
        return output_BTD[:, output_BTD.shape[1] - batch.input_ids.shape[1] :][aligned]

    def keep(site: Site, output: Any) -> None:
        nonlocal n_missing
        output = output[0] if isinstance(output, (tuple, list)) else output
        B, T = batch.input_ids.shape
        if output.ndim == 2 and len(output) % B == 0:  # some blocks work on rows side by side
            output = output.unflatten(0, (B, -1))
        if output.ndim != 3 or output.shape[0] != B or output.shape[1] < T:
            raise IA2Error(f"{site} has the shape {tuple(output.shape)}; expected ({B}, at least {T}, features)")
        parts[site].append(output.clone() if later else at_positions(output))  # Falcon adds to it in place
        n_missing -= 1
        if not n_missing and ends_early:
            raise _Enough

    def watch(site: Site, module: nn.Module) -> Any:
        if site in BEFORE:
            return module.register_forward_pre_hook(lambda module, args: keep(site, args[0]))
        return module.register_forward_hook(lambda module, args, output: keep(site, output))

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTD = args[0][:, args[0].shape[1] - batch.input_ids.shape[1] :]
        return (hidden_BTD[batch.response_mask][None] if "logits" in sites else hidden_BTD[:1, :0], *args[1:])

    with ExitStack() as hooks:
        for site, path in places:
            hooks.callback(watch(site, anatomy.base.get_submodule(path)).remove)
        hooks.callback(anatomy.base.get_output_embeddings().register_forward_pre_hook(select).remove)
        try:
            out = model(input_ids=batch.input_ids, attention_mask=mask, past_key_values=prefix, use_cache=False)
        except _Enough:
            out = None
    if n_missing:
        raise RuntimeError(f"{n_missing} of {len(places)} places to read did not run in the forward pass")
    values: dict[Site, Tensor] = {}
    for site, acts in parts.items():
        if site != "logits":
            values[site] = torch.stack([at_positions(output) for output in acts] if later else acts, dim=1)
    if "logits" in sites:
        values["logits"] = out.logits[0]
    elif out is not None and out.logits.requires_grad:
        # A gradient, of no logits at all, must come from the end: FSDP fetches the weights of a layer again as one
        # reaches what the layer gave, and DDP waits for one of every weight of the adapter.
        values = {site: acts + out.logits.sum().to(acts.dtype) for site, acts in values.items()}
    return values


@contextmanager
def float32_head(base: PreTrainedModel) -> Iterator[None]:
    """Within the block, logits are computed in float32: in bfloat16, those of two labels are often the same number.

    Only of a plain head: not of one that an adapter changes, that is quantised, or that processes share.
    """

    def compute(head: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        if type(head) is not nn.Linear or logits.dtype == torch.float32:
            return logits
        hidden = args[0].float()
        logits = torch.cat([hidden @ part_VD.float().T for part_VD in head.weight.split(AT_ONCE)], -1)
        return logits if head.bias is None else logits + head.bias.float()

    handle = base.get_output_embeddings().register_forward_hook(compute)
    try:
        yield
    finally:
        handle.remove()


def paths(anatomy: Anatomy, site: Site, layers: Collection[int] | None = None) -> list[str]:
    """The modules where a site is read, one a layer that has it, in ascending order of layers; none for logits."""
    return [path for layer, path in places(anatomy, site).items() if layers is None or layer in layers]


def places(anatomy: Anatomy, site: Site) -> dict[int, str]:
    """The module where a site is read, by decoder layer, from 0, in ascending order; none for logits.

    Raises:
        IA2Error: this model does not have the site.
    """
    return _PLACES[site](anatomy)


def layer_numbers(layers: str, n_layers: int) -> frozenset[int] | None:
    """The decoder layers that a text names, from 0; None for `all`.

    Args:
        layers: `all`, `first:4`, `last:4`, `every:2`, or numbers and ranges such as `0,5-8`.
        n_layers: of the model.

    Raises:
        IA2Error: it is not of that form, or names a layer that is not there.
    """
    if layers == "all":
        return None
    parts = [re.fullmatch(r"(first:|last:|every:)?(\d+)(?:-(\d+))?", part.strip()) for part in layers.split(",")]
    chosen: set[int] = set()
    for part in parts:
        if part is None or (part[1] and part[3]):
            raise IA2Error(f"layers are '{layers}'; expected all, first:4, last:4, every:2, or numbers such as 0,5-8")
        n = int(part[2])
        chosen |= {
            "first:": set(range(n)),
            "last:": set(range(n_layers - n, n_layers)),
            "every:": set(range(0, n_layers, max(n, 1))),
            None: set(range(n, int(part[3] or n) + 1)),
        }[part[1]]
    if not chosen or not chosen <= set(range(n_layers)):
        raise IA2Error(f"layers are '{layers}' and the model has {n_layers} of them, 0 to {n_layers - 1}")
    return frozenset(chosen)


class _Enough(Exception):  # noqa: N818  (it is no error)
    """All that is to be read has been."""
