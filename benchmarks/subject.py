"""What is measured: an embedded model, rows of its tasks, and the plain published procedure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ia2 import world
from ia2.bank import restore, trainable_copy
from ia2.capture import Selection
from ia2.contexts import Contexts
from ia2.data import Example
from ia2.models import LanguageModel, load_model
from ia2.prompt import Prompt, Tokens
from ia2.task import Task

ATTENTION = Selection(frozenset({"attn_out"}))


def load() -> LanguageModel:
    """The model that everything is measured on."""
    return load_model("tiny")


def examples(name: str, n: int, split: str = "train") -> list[Example]:
    """Labelled rows of an embedded task."""
    return [Example(**row) for row in world.TASKS[name].rows(n, 0, split)]


def task(name: str) -> Task:
    """How its answers look."""
    return Task(world.TASKS[name].labels)


def prompts(name: str, rows: Sequence[Example], contexts: Contexts) -> list[Prompt]:
    """Teacher prompts with their responses."""
    return contexts.prompts(task(name), rows, np.random.default_rng(0))


@torch.no_grad()
def plain_collect(lm: LanguageModel, rows: Sequence[Tokens]) -> list[Tensor]:
    """The published procedure: prompts with their responses a row at a time, no cache, hooks on a full forward.

    (R, L, D) of each row.
    """
    return [_at_response(row, _hooked(lm, torch.tensor([row.ids]))[0]) for row in rows]


def _at_response(row: Tokens, values_T: Tensor) -> Tensor:
    end = len(row.ids) - 1
    return values_T[end - row.n_response : end]


@torch.no_grad()
def plain_generate(lm: LanguageModel, rows: Sequence[Tokens], n: int) -> list[Tensor]:
    """The published procedure with generated responses of n tokens: a row and a token at a time; (n, L, D) of each."""
    found = []
    for row in rows:
        ids, parts = list(row.ids), []
        for _ in range(n):
            acts_TLD, logits_TV = _hooked(lm, torch.tensor([ids]))
            parts.append(acts_TLD[-1:])
            ids.append(int(logits_TV[-1].argmax()))
        found.append(torch.cat(parts))
    return found


def _hooked(lm: LanguageModel, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(T, L, D) and (T, V) of one row."""
    kept: list[Tensor] = []
    hooks = [
        lm.base.get_submodule(path).register_forward_hook(lambda module, args, out: kept.append(out[0]))
        for path in lm.anatomy.attn_out
    ]
    try:
        logits_TV = lm.base(input_ids=ids_BT, use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(kept, dim=1), logits_TV


def alike(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> bool:
    """Equal to 1e-5 of a row's largest value, row by row."""
    return all((a - b).abs().max() <= 1e-5 * b.abs().max() for a, b in zip(ours, reference, strict=True))


@dataclass(frozen=True)
class Plain:
    """The published procedure from end to end: batch 1 with accumulation, a full head, targets captured for each rate.

    Attributes:
        lm: with an adapter.
        begin: puts its first weights back.
        train, dev: rows with their context, and without.
        rates, epochs, accumulation: of both stages; the development loss every two updates, no stopping.
    """

    lm: LanguageModel
    begin: Callable[[], None]
    train: tuple[Sequence[Tokens], Sequence[Tokens]]
    dev: tuple[Sequence[Tokens], Sequence[Tokens]]
    rates: Sequence[float]
    epochs: int
    accumulation: int = 4

    def job(self) -> list[float]:
        """Prime, then fine-tune, each with the best rate by development loss; the first such loss of each stage."""
        self.begin()
        firsts = []
        for aligns in (True, False):
            start, tried = trainable_copy(self.lm.model), []
            for rate in self.rates:
                restore(self.lm.model, start)
                tried.append((self._train(rate, aligns), trainable_copy(self.lm.model)))
            firsts.append(tried[0][0][0])
            restore(self.lm.model, min(tried, key=lambda of: of[0][-1])[1])
        return firsts

    def _train(self, rate: float, aligns: bool) -> list[float]:
        with self.lm.model.disable_adapter():
            taught, taught_dev = (plain_collect(self.lm, rows) if aligns else [] for rows, _ in (self.train, self.dev))
        trained = [p for p in self.lm.model.parameters() if p.requires_grad]
        adam = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        losses = [self._dev_loss(taught_dev)]
        for _ in range(self.epochs):
            for i, row in enumerate(self.train[1]):
                (self._loss(row, taught[i] if aligns else None) / self.accumulation).backward()
                if i % self.accumulation == self.accumulation - 1:
                    adam.step()
                    adam.zero_grad()
                if i % (2 * self.accumulation) == 2 * self.accumulation - 1:
                    losses.append(self._dev_loss(taught_dev))
        return losses

    def _loss(self, row: Tokens, taught_RLD: Tensor | None) -> Tensor:
        acts_TLD, logits_TV = _hooked(self.lm, torch.tensor([row.ids]))
        if taught_RLD is not None:
            return (_at_response(row, acts_TLD) - taught_RLD).square().mean() * acts_TLD.shape[1]
        ids_R = torch.tensor(row.ids[-row.n_response :])
        return torch.nn.functional.cross_entropy(_at_response(row, logits_TV), ids_R)

    @torch.no_grad()
    def _dev_loss(self, taught: Sequence[Tensor]) -> float:
        losses = [self._loss(row, taught[i] if taught else None) for i, row in enumerate(self.dev[1])]
        return float(torch.stack(losses).mean())
