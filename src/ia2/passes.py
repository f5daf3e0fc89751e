"""Forward passes over many rows: batches of similar length, and what rows begin with alike computed once."""

import copy
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from ia2.capture import Site, read
from ia2.memory import in_halves
from ia2.models import LanguageModel
from ia2.processes import is_shared, most
from ia2.prompt import Positions, TokenBatch, Tokens

TOKENS_PER_BATCH = 8192
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

    The values are those of `ia2.read` on each row whole; but what rows begin with alike, as with the same demos for
    every query, or with orders of them that differ towards the end, runs once, and the rest of each row attends to its
    keys and values.

    Where processes share the weights, each calls this with rows of its own, or none, and all make as many passes.

    Yields:
        Indices of the rows in a batch, the batch (without what is shared), and its values.
    """
    tree = branch(lm, rows, range(len(rows)))
    n_passes = sum(bool(part.ids) + len(list(batches(part.rows, max_tokens, part.end))) for part in tree.walk())
    n_others = most(n_passes) - n_passes if is_shared(lm.base) else 0

    def below(part: Branch, before: Cache | None) -> Iterator[tuple[list[int], TokenBatch, dict[Site, Tensor]]]:
        cache = prefill(lm, part.ids, before) if part.ids else None

        def values(chosen: Sequence[int]) -> tuple[TokenBatch, dict[Site, Tensor]]:
            batch = lm.encoder.collate([part.rows[i] for i in chosen], positions).to(lm.device)
            prefix = repeated(cache, len(chosen)) if cache else None
            return batch, read(lm.model, lm.anatomy, batch, sites, layers, prefix)

        for chosen, (batch, found) in in_halves(batches(part.rows, max_tokens, part.end), values):
            yield [part.indices[i] for i in chosen], batch, found
        for further in part.below:
            yield from below(further, cache)

    yield from below(tree, None)
    for _ in range(n_others):
        read(lm.model, lm.anatomy, lm.encoder.collate([NO_ROW]).to(lm.device), ())


@dataclass(frozen=True)
class Branch:
    """Rows that begin alike.

    Attributes:
        ids: what they begin with, behind what they share with others and is computed already.
        end: where these end.
        indices, rows: those that go on each for itself, without what they begin with.
        below: those that go on alike.
    """

    ids: tuple[int, ...]
    end: int
    indices: list[int]
    rows: list[Tokens]
    below: list["Branch"]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Of each text that is computed for the branch: its tokens, and how many its last one sees, itself included."""
        return [(len(self.ids), self.end), *((row.n_inputs, self.end + row.n_inputs) for row in self.rows)]

    def walk(self) -> Iterator["Branch"]:
        """This branch and all below it."""
        yield self
        for part in self.below:
            yield from part.walk()


def branch(lm: LanguageModel, rows: Sequence[Tokens], chosen: Sequence[int], start: int = 0, end: int = 0) -> Branch:
    """What the chosen rows begin with alike behind `end`, wherever it pays; `start` to `end` is this branch's part."""
    groups, own, below = [list(chosen)] if chosen else [], list[int](), list[Branch]()
    while groups:
        group = groups.pop()
        n = end + shared_prefix(lm, [rows[i] for i in group], end)
        if n > end:
            below.append(branch(lm, rows, group, end, n))
            continue
        n = _alike([rows[i] for i in group])
        by_next: dict[int | None, list[int]] = defaultdict(list)
        for i in group:
            by_next[rows[i].ids[n] if n < rows[i].n_context else None].append(i)
        own += by_next.pop(None, [])
        groups += by_next.values()
    ids = rows[chosen[0]].ids[start:end] if chosen else ()
    return Branch(ids, end, own, [replace(rows[i], ids=rows[i].ids[end:]) for i in own], below)


def shared_prefix(lm: LanguageModel, rows: Sequence[Tokens], start: int = 0) -> int:
    """How many tokens of context all rows have alike behind `start`; 0 where a pass for them does not pay or cannot be.

    That is where their keys and values cannot be kept, or where it saves too few tokens, or too small a part of them:
    behind what is shared, the keys and values of all layers are held at once.
    """
    n, longest = _alike(rows) - start, max(len(row.ids) for row in rows) - start
    pays = (len(rows) - 1) * n >= worth_a_pass(lm.device) and 16 * n >= longest
    return n if pays and _caches(lm) else 0


def _caches(lm: LanguageModel) -> bool:
    """Whether keys and values are all that goes from one token to the next: no other states, no virtual tokens."""
    kept = "past_key_values" in signature(lm.base.forward).parameters
    others = any(hasattr(layer, "update_conv_state") for layer in DynamicCache(config=lm.base.config).layers)
    return kept and not others and len(lm.anatomy.attention_layers) == len(lm.anatomy.layers) and not lm.adds_tokens


def worth_a_pass(device: torch.device) -> int:
    """How many tokens a pass of its own must save: what takes as long as to begin one, more on a GPU."""
    return 64 if device.type == "cpu" else 4096


def _alike(rows: Sequence[Tokens]) -> int:
    """How many tokens of context all rows begin with alike: so many as the first and the last of them in order."""
    ids = [row.ids for row in rows]
    pairs = enumerate(zip(min(ids), max(ids), strict=False))
    shortest = min(row.n_context for row in rows)
    return min(next((t for t, (a, b) in pairs if a != b), shortest), shortest)


@torch.no_grad()
def prefill(lm: LanguageModel, ids: Sequence[int], before: Cache | None = None) -> Cache:
    """Keys and values of one text, and of those before it."""
    cache = _copied(before) if before else DynamicCache(config=lm.base.config)
    batch = lm.encoder.collate([Tokens(tuple(ids), 0, 0)]).to(lm.device)
    read(lm.model, lm.anatomy, batch, (), prefix=cache)
    return cache


def repeated(cache: Cache, n: int) -> Cache:
    """A copy for n rows; a pass that uses it adds to it."""
    copied = _copied(cache)
    copied.batch_repeat_interleave(n)
    return copied


def _copied(cache: Cache) -> Cache:
    """Keys and values are joined to others, never written over, so that copies can share them."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def batches(rows: Sequence[Tokens], max_tokens: int = TOKENS_PER_BATCH, n_prefix: int = 0) -> Iterator[list[int]]:
    """Indices of rows in batches of similar length, of at most `max_tokens` tokens with padding, or one row.

    Tokens of a shared prefix take memory, not time: a quarter of each counts.
    """
    chosen: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -rows[i].n_inputs):
        if chosen and (rows[chosen[0]].n_inputs + n_prefix / 4) * (len(chosen) + 1) > max_tokens:
            yield chosen
            chosen = []
        chosen.append(i)
    if chosen:
        yield chosen
