"""How well a model learns a task in context: its answers behind 0, 1, 2, ... demos, all read from one forward pass."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ia2.world.tasks import TASKS, WorldTask
from ia2.world.text import STOP

DEMOS = (0, 1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class InContext:
    """What a model answers in B sequences of K samples; sample k has the k before it as demos.

    Attributes:
        hits: (B, K) whether every token of the response is the likeliest.
        p_labels: (B, K, labels) probabilities of the task's labels, scaled to sum to 1; None for generated answers.
        mass: (B, K) probability that all labels have together; None for generated answers.
    """

    hits: Tensor
    p_labels: Tensor | None
    mass: Tensor | None

    def accuracy(self, n_demos: Sequence[int] = DEMOS) -> dict[int, float]:
        """Accuracy by number of demos, over sequences; that of 4 and more over a few places (n to n + n//4) as well."""
        return {n: self.hits[:, n : n + n // 4 + 1].float().mean().item() for n in n_demos}


@torch.no_grad()
def in_context(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: WorldTask,
    n_demos: int = 32,
    n_sequences: int = 64,
    seed: int = 0,
    shuffle: bool = False,
    split: str = "test",
) -> InContext:
    """Let a model answer in sequences of n_demos + 1 rows of a task, teacher-forced; `shuffle` the demos' responses.

    Shuffled demos say nothing; so hits compare with what the task says, whatever the demos say.
    """
    K = n_demos + 1
    rows = [row for i in range(n_sequences) for row in task.rows(K, seed * n_sequences + i, split)]
    shown = [row["response"] for row in rows]
    if shuffle:
        random.Random(seed).shuffle(shown)
    ids: list[list[int]] = []
    answers: list[tuple[int, int, list[int]]] = []  # sequence, first place, ids of the right response
    for i, (row, response) in enumerate(zip(rows, shown, strict=True)):
        if i % K == 0:
            ids.append([tokenizer.bos_token_id])
        query, said, right, stop = (
            tokenizer.encode(text, add_special_tokens=False) for text in (row["query"], response, row["response"], STOP)
        )
        answers.append((len(ids) - 1, len(ids[-1]) + len(query), right))
        ids[-1] += query + said + stop
    logits = model(input_ids=torch.tensor(ids), use_cache=False).logits
    best = logits.argmax(-1).tolist()
    is_right = [best[b][at - 1 : at - 1 + len(right)] == right for b, at, right in answers]
    hits = torch.tensor(is_right).view(n_sequences, K)
    if task.labels is None:
        return InContext(hits, None, None)
    label_ids = [tokenizer.convert_tokens_to_ids(label) for label in task.labels]
    places = torch.tensor([at - 1 for _, at, _ in answers]).view(n_sequences, K)
    logits = logits[torch.arange(n_sequences)[:, None], places]
    p_labels = logits.softmax(-1)[..., label_ids]
    return InContext(hits, p_labels / p_labels.sum(-1, keepdim=True), p_labels.sum(-1))


def table(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, dict[str, float]]:
    """Accuracy of every task of the world by number of demos."""
    results = {name: in_context(model, tokenizer, task, n_sequences=128) for name, task in TASKS.items()}
    return {
        name: {str(n): round(value, 3) for n, value in result.accuracy().items()} for name, result in results.items()
    }
