"""What collecting and training will need, before they run: memory, disk and time, from sizes alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ia2.capture import Selection
from ia2.jobs import share
from ia2.models import LanguageModel
from ia2.passes import TOKENS_PER_BATCH
from ia2.prompt import Tokens
from ia2.targets import SHARD_BYTES, n_bytes

ADAM_BYTES = 4 * 4  # a weight, its gradient and two moments, in float32
LIVE_TENSORS = 24  # of width D a token and layer that autograd keeps, in a usual decoder layer; measured: 18 to 30


@dataclass(frozen=True)
class Needs:
    """Bytes of a process, and its floating-point operations.

    Attributes:
        weights: of the base, its part of them where processes share them.
        targets: what the teacher leaves on disk, exactly, for all processes together.
        collecting: at the most while the teacher runs, weights included.
        training: at the most while an adapter trains, weights included.
        collect_flops: of the teacher's pass.
        step_flops: of one training step.
    """

    weights: int
    targets: int
    collecting: int
    training: int
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
    backward pass of a frozen base as much again. Activations of a training step are `LIVE_TENSORS` of the model's
    width a token and layer, and the float32 logits and their gradient at response positions. Processes share the rows;
    where they share the weights too, each has besides its part the head, and two layers while they are computed.

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
    size = lm.base.dtype.itemsize
    parameters = sum(p.numel() for p in lm.base.parameters())
    weights = _size(lm.base)
    if shared:
        head, layer = lm.base.get_output_embeddings(), lm.base.get_submodule(lm.anatomy.layers[0])
        weights = weights // n_processes + _size(head) + 2 * _size(layer)
    targets = sum(n_bytes(lm, row, selection) for row in teacher)
    longest = max((len(row.ids) for row in teacher), default=0)
    in_batch = min(max(TOKENS_PER_BATCH, longest), sum(len(row.ids) for row in teacher))
    pairs = [len(row.ids) ** 2 for row in teacher]
    steps = sorted(student, key=lambda row: -len(row.ids))[: share(batch_size, n_processes)]
    step_tokens = len(steps[0].ids) * len(steps) if steps else 0
    responses = sum(row.n_response for row in steps)
    collect_flops = 2.0 * parameters * sum(len(row.ids) for row in teacher) + 4.0 * L * D * sum(pairs)
    return Needs(
        weights=weights,
        targets=targets,
        collecting=weights + in_batch * D * size * 8 + min(targets, SHARD_BYTES),
        training=weights + n_trainable * ADAM_BYTES + step_tokens * D * L * LIVE_TENSORS * size + 8 * responses * V,
        collect_flops=collect_flops / n_processes,
        step_flops=4.0 * parameters * step_tokens,
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
