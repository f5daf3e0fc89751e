"""What is measured: an embedded model, rows of its tasks, and the plain published procedure."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ia2 import world
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
    rng = np.random.default_rng(0)
    return [contexts.prompt(task(name), row, task(name).completion(row.label), rng) for row in rows]


@torch.no_grad()
def plain_collect(lm: LanguageModel, rows: Sequence[Tokens], each_token: bool = False) -> list[Tensor]:
    """The published procedure: a row at a time, no cache, hooks on a full forward; (R, L, D) of each row.

    Args:
        lm: the model.
        rows: prompts with their responses.
        each_token: whether every token of a response has a forward of its own, as where it is generated.
    """
    found = []
    for row in rows:
        start, end = len(row.ids) - row.n_response, len(row.ids)
        ends = range(start, end) if each_token else [end - 1]
        parts = []
        for stop in ends:
            acts = _hooked(lm, torch.tensor([row.ids[:stop]]))
            parts.append(acts[-1:] if each_token else acts[start - 1 :])
        found.append(torch.cat(parts))
    return found


def _hooked(lm: LanguageModel, ids_BT: Tensor) -> Tensor:
    """(T, L, D) of one row."""
    kept: list[Tensor] = []
    hooks = [
        lm.base.get_submodule(path).register_forward_hook(lambda module, args, out: kept.append(out[0]))
        for path in lm.anatomy.attn_out
    ]
    try:
        lm.base(input_ids=ids_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(kept, dim=1)


def alike(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> bool:
    """Equal to 1e-4, row by row."""
    return all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(ours, reference, strict=True))
