"""What collecting and training will need, before they run: memory, disk and time, from sizes alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ia2.capture import Selection, places
from ia2.errors import IA2Error
from ia2.jobs import share
from ia2.models import LanguageModel
from ia2.passes import batches, branch
from ia2.prompt import Tokens
from ia2.targets import SHARD_BYTES, n_bytes

ADAM_BYTES = 4 * 4  # a weight, its gradient and two moments, in float32
UNFUSED = {"gelu_new", "gelu_fast", "gelu_python", "quick_gelu"}  # activations of several operations each


@dataclass(frozen=True)
class Needs:
    """Bytes of a process, and its floating-point operations.

    Attributes:
        weights: of the base, its part of them where processes share them.
        targets: what the teacher leaves on disk, exactly, for all processes together.
        collecting: at the most while the teacher runs, weights included.
        training: at the most while an adapter trains, weights included.
        teaching: what the teacher computes.
        collect_flops: of a process's share of that.
        step_flops: of one training step.
    """

    weights: int
    targets: int
    collecting: int
    training: int
    teaching: "Work"
    collect_flops: float
    step_flops: float


def estimate(
    lm: LanguageModel,
    teacher: Sequence[Tokens],
    student: Sequence[Tokens],
    selection: Selection,
    n_trainable: int,
    batch_size: int,
    n_processes: int = 1,
    shared: bool = False,
) -> Needs:
    """From the token counts of all rows.

    A forward pass takes two operations a parameter and token, attention four a layer, width and pair of tokens; the
    backward pass of a frozen base as much again. What a training step keeps is, of every token and layer, five times
    the width, keys, values, and what the feed-forward block computes; and the float32 logits and their gradient at
    response positions. What the teacher holds at once is the inside of one feed-forward block. Processes share the
    rows; where they share the weights too, each has besides its part the head, and two layers while they are computed.

    Args:
        lm: the base.
        teacher, student: rows with and without their context.
        selection: what is collected.
        n_trainable: parameters of the adapter.
        batch_size: rows of a training step.
        n_processes: that share the rows.
        shared: whether they all share the weights too (FSDP).
    """
    config = lm.base.config.get_text_config()
    D, V, L = int(config.hidden_size), int(config.vocab_size), len(lm.anatomy.layers)
    size, (M, n_inner) = lm.base.dtype.itemsize, _feed_forward(lm, D)
    kept = 5 * D + 2 * _key_width(config, D) + n_inner * M  # features of a token and layer
    parameters = sum(p.numel() for p in lm.base.parameters())
    weights = _size(lm.base)
    if shared:
        head, layer = lm.base.get_output_embeddings(), lm.base.get_submodule(lm.anatomy.layers[0])
        weights = weights // n_processes + _size(head) + 2 * _size(layer)
    targets = sum(n_bytes(lm, row, selection) for row in teacher)
    teaching = work(lm, teacher)
    steps = sorted(student, key=lambda row: -row.n_inputs)[: share(batch_size, n_processes)]
    step_tokens = steps[0].n_inputs * len(steps) if steps else 0
    responses = sum(row.n_response for row in steps)
    return Needs(
        weights=weights,
        targets=targets,
        collecting=weights + teaching.n_at_once * (3 * D + max(n_inner, 2) * M) * size + min(targets, SHARD_BYTES),
        training=weights + n_trainable * ADAM_BYTES + step_tokens * L * kept * size + 8 * responses * V,
        teaching=teaching,
        collect_flops=teaching.flops / n_processes,
        step_flops=4.0 * parameters * step_tokens,
    )


@dataclass(frozen=True)
class Work:
    """What passes over rows compute.

    Attributes:
        n_tokens: of all rows.
        n_computed: without those that rows begin with alike, but for once.
        n_padding: beside them, where rows of a batch differ in length.
        n_at_once: the most of one pass, padding included.
        flops: floating-point operations, without those of padding.
    """

    n_tokens: int
    n_computed: int
    n_padding: int
    n_at_once: int
    flops: float


def work(lm: LanguageModel, rows: Sequence[Tokens]) -> Work:
    """Of the passes that `ia2.passes.passes` makes."""
    D, L = int(lm.base.config.get_text_config().hidden_size), len(lm.anatomy.layers)
    parameters = sum(p.numel() for p in lm.base.parameters())
    parts = list(branch(lm, rows, range(len(rows))).walk())
    spans = [span for part in parts for span in part.spans]
    padded = [
        len(chosen) * max(part.rows[i].n_inputs for i in chosen)
        for part in parts
        for chosen in batches(part.rows, n_prefix=part.end)
    ]
    return Work(
        n_tokens=sum(row.n_inputs for row in rows),
        n_computed=sum(n for n, _ in spans),
        n_padding=sum(padded) - sum(row.n_inputs for part in parts for row in part.rows),
        n_at_once=max([*padded, *(len(part.ids) for part in parts)]),
        flops=sum(2.0 * parameters * n + 4.0 * L * D * n * end for n, end in spans),
    )


def _feed_forward(lm: LanguageModel, D: int) -> tuple[int, int]:
    """The inner width of a feed-forward block, and how many tensors of it autograd keeps."""
    config = lm.base.config.get_text_config()
    try:
        path = places(lm.anatomy, "neurons")[0]
    except IA2Error:  # experts, for instance
        return 4 * D, 3
    projection: Any = lm.base.get_submodule(path)
    M = projection.weight.numel() // D
    block = lm.base.get_submodule(path.rpartition(".")[0])
    gated = sum(p.numel() // (D * M) for p in block.parameters() if p.numel() % (D * M) == 0) > 2
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation_function", "")
    return M, 3 if gated else 4 if activation in UNFUSED else 1


def _key_width(config: Any, D: int) -> int:
    """Of all keys of a token."""
    n_heads = int(config.num_attention_heads)
    n_key_heads = int(getattr(config, "num_key_value_heads", None) or n_heads)
    return n_key_heads * int(getattr(config, "head_dim", None) or D // n_heads)


def _size(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
