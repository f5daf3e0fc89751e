"""From text to token ids.

Shapes, here and everywhere: B batch, T tokens, P response positions of a batch, R of one row, L layers, D width,
V vocabulary, N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ia2.chat import Chat, find_chat
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.task import Task

IGNORED = -100
ANCHORS = ("\n", "a", ":", "0")  # what a piece is tokenised behind, where tokenizers put a space before their text
Positions = Literal["response", "first", "query"]
POSITIONS: tuple[Positions, ...] = get_args(Positions)
N_PIECES = 2**14  # whose ids are remembered


@dataclass(frozen=True)
class Prompt:
    """Text for a model: a context (any text, then demos), then `query`, then the `response` to predict.

    Every piece is tokenised apart and the ids are joined, so that two prompts with the same query and response share
    every id of them, whatever stands before.

    Attributes:
        demos: queries with their responses.
        query, response: the response is empty where it is to be generated.
        text: what comes before everything.
        separator: between demos; behind a response that must also say where it ends.
    """

    demos: tuple[tuple[str, str], ...]
    query: str
    response: str = ""
    text: str = ""
    separator: str = "\n\n"

    @property
    def context(self) -> tuple[str, ...]:
        """The pieces before the query, in the paper's form: query and response of a demo with nothing between."""
        opening = (self.text, self.separator) if self.text else ()
        return (*opening, *(piece for demo in self.demos for piece in (*demo, self.separator)))


def build_prompt(
    task: Task, demos: Sequence[Example], query: str, response: str | None = None, text: str = ""
) -> Prompt:
    """A prompt of a task; a response that is generated ends with the separator, so that the model learns to stop."""
    shown = tuple((demo.query, demo.label) for demo in demos)
    return Prompt(shown, query, "" if response is None else task.completion(response), text, task.separator)


@dataclass(frozen=True)
class Tokens:
    """Ids of one prompt; the last `n_response` of them are the response, the `n_query` before these the query."""

    ids: tuple[int, ...]
    n_response: int
    n_query: int

    @property
    def n_context(self) -> int:
        """Tokens before the query."""
        return len(self.ids) - self.n_response - self.n_query

    @property
    def n_inputs(self) -> int:
        """Tokens that a pass has to read: nothing is predicted behind the last one of a response."""
        return len(self.ids) - (self.n_response > 0)

    def aligned(self, positions: Positions) -> range:
        """Where activations are read: at the positions that predict a response token, each one before its token.

        `first` is the first of these alone; `query` are these and all other positions of the query.
        """
        end = len(self.ids) - 1
        start = end - self.n_response
        if positions == "query":
            return range(start + 1 - self.n_query, end)
        return range(start, min(start + 1, end) if positions == "first" else end)


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded prompts.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, 0 where padded.
        labels: (B, T) int64, the response token that the position predicts, else -100.
        aligned_mask: (B, T) bool, the positions at which activations are read.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    aligned_mask: Tensor

    @property
    def response_mask(self) -> Tensor:
        """(B, T) bool: the P positions that predict a response token, each one before its token."""
        return self.labels != IGNORED

    @property
    def response_ids(self) -> Tensor:
        """(P,) the tokens predicted at `response_mask`, in its row-major order."""
        return self.labels[self.labels != IGNORED]

    def to(self, device: torch.device) -> "TokenBatch":
        """The batch on another device."""
        return TokenBatch(**{name: value.to(device) for name, value in vars(self).items()})


class Encoder:
    """Tokenises prompts piece by piece; a piece met lately is not tokenised again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, chat: Chat = "none"):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.chat = None if chat == "none" else find_chat(tokenizer, chat)
        self._trim = str.strip if self.chat and self.chat.trims else str
        marked, bare = tokenizer("a").input_ids, self._ids("a")
        if not bare:
            raise IA2Error(
                f"the tokenizer, a {type(tokenizer).__name__}, has no token for the letter a; "
                "expected the one that the model was trained with (transformers may have put its own in its place)"
            )
        before: list[int] = next((marked[:i] for i in range(len(marked)) if marked[i:][: len(bare)] == bare), [])
        self.bos = [] if self.chat else before  # a chat template has its own
        self._adds_space = self._ids("\na")[len(self._ids("\n")) :] != bare
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.pad_id: int = pad if pad is not None else 0
        self._cached = lru_cache(N_PIECES)(self._piece)

    def pieces(self, prompt: Prompt) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Of context, query and response: as the prompt has them, or as the chat template renders them."""
        chat, response, trim = self.chat, prompt.response, self._trim
        if chat is None:
            return prompt.context, (prompt.query,), (response,)
        ends = response.endswith(prompt.separator)  # a response that says where it ends does so as a turn does
        ended = (trim(response.removesuffix(prompt.separator)), chat.end) if ends else (trim(response),)
        if chat.style == "message":
            shown = replace(prompt, text="").context
        else:
            turns = ((trim(q), chat.to_answer, trim(a), chat.between) for q, a in prompt.demos)
            shown = tuple(piece for turn in turns for piece in turn)
        return (*chat.opening(prompt.text), *shown), (trim(prompt.query), chat.to_answer), ended

    @property
    def stop(self) -> str | None:
        """The text that ends a turn, with a chat template."""
        return self.chat.end.strip() if self.chat else None

    def piece(self, text: str) -> list[int]:
        """Ids of a piece of text as they are behind other text: no special tokens, and no space that is not there."""
        return self._cached(text)

    def _piece(self, text: str) -> list[int]:
        return self._behind_anchor(text) if self._adds_space and text else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _behind_anchor(self, text: str) -> list[int]:
        for anchor in ANCHORS:
            start, ids = self._ids(anchor), self._ids(anchor + text)
            if ids[: len(start)] == start:  # no token spans both
                return ids[len(start) :]
        raise IA2Error(f"the tokenizer puts a space before {text[:60]!r}; expected one that can be told not to")

    def label_ids(self, labels: Sequence[str]) -> list[list[int]]:
        """Ids of each label as a response: without outer spaces, where the chat template drops these.

        Raises:
            IA2Error: two are the same, or one has none.
        """
        ids = [self.piece(self._trim(label)) for label in labels]
        if len({tuple(i) for i in ids}) < len(ids) or not all(ids):
            raise IA2Error(
                f"the labels {', '.join(map(repr, labels))} are not told apart by this model's tokenizer; "
                "use other labels, or another model"
            )
        return ids

    def unknown(self, rows: Sequence[Tokens]) -> str | None:
        """A line on the tokens of queries and responses that stand for text which the vocabulary lacks, if any do."""
        ids, unk = [i for row in rows for i in row.ids[row.n_context :]], self.tokenizer.unk_token_id
        n = ids.count(unk)
        if not n or unk == self.tokenizer.eos_token_id:  # where one token is both, it ends turns
            return None
        return (
            f"{n / len(ids):.0%} of the tokens of queries and responses are unknown to this model, which reads all of "
            f"them as {self.tokenizer.unk_token}: use a model that knows these words"
        )

    def fits(self, prompt: Prompt, task: Task) -> bool:
        """Whether the model's window holds a prompt with its response, and with any other answer of the task."""
        texts = prompt.response, *map(task.completion, task.labels or ())
        longest = max(self._n_tokens(self.pieces(replace(prompt, demos=(), response=text))[2]) for text in texts)
        room = longest if task.labels else max(longest, task.max_new_tokens)
        return len(self.bos) + sum(map(self._n_tokens, self.pieces(prompt)[:2])) + room <= self.max_length

    def _n_tokens(self, pieces: Sequence[str]) -> int:
        return sum(len(self.piece(text)) for text in pieces if text)

    def encode(self, prompt: Prompt) -> Tokens:
        """Ids of a prompt.

        Raises:
            IA2Error: it does not fit the model's window, or a response leaves no token.
        """
        context, query, response = (
            [i for text in part if text for i in self.piece(text)] for part in self.pieces(prompt)
        )
        ids = [*self.bos, *context, *query, *response]
        if not self.bos and not context and not query:
            raise IA2Error(f"the query {prompt.query!r} has no tokens; expected some text before the response")
        if prompt.response and not response:
            raise IA2Error(f"the response {prompt.response!r} has no tokens in this model's vocabulary")
        n_query = len(query)
        if len(ids) > self.max_length:
            raise IA2Error(
                f"a prompt of {len(ids)} tokens ({len(ids) - n_query - len(response)} of context, {n_query} of query, "
                f"{len(response)} of response) exceeds the model's window of {self.max_length}: "
                f"use fewer or shorter examples; the query is {prompt.query[:60]!r}"
            )
        return Tokens(tuple(ids), len(response), n_query)

    def collate(self, rows: Sequence[Tokens], positions: Positions = "response") -> TokenBatch:
        """The tokens that a pass has to read, padded on the right, so that real positions are as without padding."""
        shape = len(rows), max(row.n_inputs for row in rows)
        input_ids, attention_mask = np.full(shape, self.pad_id), np.zeros(shape, np.int64)
        labels, aligned_mask = np.full(shape, IGNORED), np.zeros(shape, np.bool_)
        for i, row in enumerate(rows):
            n = row.n_inputs
            input_ids[i, :n] = row.ids[:n]
            attention_mask[i, :n] = 1
            labels[i, n - row.n_response : n] = row.ids[len(row.ids) - row.n_response :]
            aligned = row.aligned(positions)
            aligned_mask[i, aligned.start : aligned.stop] = True
        return TokenBatch(*map(torch.from_numpy, (input_ids, attention_mask, labels, aligned_mask)))
