"""Forward passes over many rows: batches of similar length, and what all prompts begin with computed once."""

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from ia2.capture import Site, read
from ia2.memory import in_halves
from ia2.models import LanguageModel
from ia2.processes import is_shared, most
from ia2.prompt import Positions, TokenBatch, Tokens

TOKENS_PER_BATCH = 8192
PREFIX_TOKENS = 32  # a shared beginning shorter than this is not worth a pass of its own
NO_ROW = Tokens((0,), 0, 0)  # without a response: nothing is read, nothing counts


def passes(
    lm: LanguageModel,
    rows: Sequence[Tokens],
    sites: Collection[Site],
    layers: Collection[int] | None = None,
    positions: Positions = "response",
    max_tokens: int = TOKENS_PER_BATCH,
) -> Iterator[tuple[list[int], TokenBatch, dict[Site, Tensor]]]:
    """Read all rows, in batches of at most `max_tokens` tokens, or of half as many where memory runs out, and so on.

    The values are those of `ia2.read` on each row whole; but where all rows begin with the same tokens, as with the
    same demos for every query, these run once and the rest of every row attends to their keys and values.

    Where processes share the weights, each calls this with rows of its own, or none, and all make as many passes.

    Yields:
        Indices of the rows in a batch, the batch (without what is shared), and its values.
    """
    n = shared_prefix(lm, rows)
    rest = [replace(row, ids=row.ids[n:]) for row in rows]
    parts = list(batches(rest, max_tokens, n))
    n_passes = len(parts) + bool(n)
    n_others = most(n_passes) - n_passes if is_shared(lm.base) else 0
    cache = prefill(lm, rows[0].ids[:n]) if n else None

    def values(chosen: Sequence[int]) -> tuple[TokenBatch, dict[Site, Tensor]]:
        batch = lm.encoder.collate([rest[i] for i in chosen], positions).to(lm.device)
        prefix = repeated(cache, len(chosen)) if cache else None
        return batch, read(lm.model, lm.anatomy, batch, sites, layers, prefix)

    for chosen, (batch, found) in in_halves(parts, values):
        yield list(chosen), batch, found
    for _ in range(n_others):
        read(lm.model, lm.anatomy, lm.encoder.collate([NO_ROW]).to(lm.device), ())


def shared_prefix(lm: LanguageModel, rows: Sequence[Tokens]) -> int:
    """How many tokens of context all rows begin with; 0 where it would not pay or cannot be cached."""
    caches = len(lm.anatomy.attention_layers) == len(lm.anatomy.layers) and not lm.adds_tokens
    if len(rows) < 2 or not caches:
        return 0
    shortest = min(row.n_context for row in rows)
    columns = zip(*(row.ids[:shortest] for row in rows), strict=True)
    n = next((t for t, column in enumerate(columns) if len(set(column)) > 1), shortest)
    return n if n >= PREFIX_TOKENS else 0


@torch.no_grad()
def prefill(lm: LanguageModel, ids: Sequence[int]) -> Cache:
    """Keys and values of one text."""
    cache = DynamicCache(config=lm.base.config)
    batch = lm.encoder.collate([Tokens(tuple(ids), 0, 0)]).to(lm.device)
    read(lm.model, lm.anatomy, batch, (), prefix=cache)
    return cache


def repeated(cache: Cache, n: int) -> Cache:
    """A copy for n rows; a pass that uses it adds to it."""
    copied = copy.deepcopy(cache)
    copied.batch_repeat_interleave(n)
    return copied


def batches(rows: Sequence[Tokens], max_tokens: int = TOKENS_PER_BATCH, n_prefix: int = 0) -> Iterator[list[int]]:
    """Indices of rows in batches of similar length, of at most `max_tokens` tokens with padding, or one row.

    Tokens of a shared prefix take memory, not time: a quarter of each counts.
    """
    chosen: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i].ids)):
        if chosen and (len(rows[chosen[0]].ids) + n_prefix / 4) * (len(chosen) + 1) > max_tokens:
            yield chosen
            chosen = []
        chosen.append(i)
    if chosen:
        yield chosen
