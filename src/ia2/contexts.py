"""What stands before a query for the teacher: demos, and any other text."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ia2.data import Example
from ia2.prompt import Prompt, build_prompt
from ia2.task import Task

Order = Literal["random", "fixed", "nearest"]
ORDERS: tuple[Order, ...] = get_args(Order)
TOGETHER = 32  # demos from which on their orders are drawn together: what prompts of fewer hold in common is short
Similarity = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]


def tfidf(queries: Sequence[str], demos: Sequence[str]) -> NDArray[np.float64]:
    """Cosine similarity of TF-IDF vectors of words, fitted on the demos; (queries, demos)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"\w+").fit(demos)
    return np.asarray((vectorizer.transform(queries) @ vectorizer.transform(demos).T).toarray())


@dataclass(frozen=True)
class Contexts:
    """The teacher's context of any query: a text for all, the row's own text, then demos.

    Attributes:
        demos: labelled examples; a query that is itself one of them is not shown itself.
        order: `random` (drawn anew for every query: the paper's), `fixed` (as they are given), or `nearest` (the most
            similar last).
        n_demos: how many; None is all of them, or none for a row that has a text of its own.
        text: for all rows.
        similarity: (queries, demos) to a similarity matrix, for `nearest`; any embedding model can stand behind it.
        fits: whether the model's window holds a prompt and any answer of its task; if given, first demos are left out
            until it does.
    """

    demos: tuple[Example, ...]
    order: Order = "random"
    n_demos: int | None = None
    text: str = ""
    similarity: Similarity = tfidf
    fits: Callable[[Prompt, Task], bool] | None = None

    def shown(self, example: Example, rng: np.random.Generator) -> list[Example]:
        """The demos of a query, in order."""
        others = self._others(self.demos, example)
        n = self._n(others, example)
        if self.order == "random":
            return [others[i] for i in rng.permutation(len(others))[:n]]
        if self.order == "nearest" and n:
            scores = self.similarity([example.query], [demo.query for demo in others])[0]
            return [others[i] for i in np.argsort(scores, kind="stable")[len(others) - n :]]
        return others[:n]

    def prompt(self, task: Task, example: Example, response: str | None, rng: np.random.Generator) -> Prompt:
        """The teacher's prompt for a query."""
        return self._prompt(task, example, response, self.shown(example, rng))

    def prompts(self, task: Task, examples: Sequence[Example], rng: np.random.Generator) -> list[Prompt]:
        """The teacher's prompts for labelled queries.

        For each of them every random order is as likely as any other. From `TOGETHER` demos on they are drawn together:
        the demos are shuffled once and halved again and again, and a query that is one of them is shown the other half
        first, then the other half of its own half, and so on. So n prompts of n - 1 demos begin alike as far as they
        can, and hold about n * log2(n) demos to compute, not n * n (`ia2.passes`). Other queries stand each beside one
        of the demos, which they are shown last; where all places are taken, the demos are shuffled again.
        """
        if self.order != "random" or len(self.demos) < TOGETHER:
            return [self.prompt(task, example, example.label, rng) for example in examples]
        n, own, n_seen = len(self.demos), {demo.query: i for i, demo in enumerate(self.demos)}, Counter[int]()
        shuffles, found = list[list[int]](), list[Prompt]()
        for example in examples:
            i = own.get(example.query, -1)
            k, place = divmod(n_seen[i], 1 if i >= 0 else n)
            n_seen[i] += 1
            if k == len(shuffles):
                shuffles.append(rng.permutation(n).tolist())
            order = _other_halves(shuffles[k], shuffles[k].index(i) if i >= 0 else place)
            others = self._others([self.demos[j] for j in order], example)
            found.append(self._prompt(task, example, example.label, others[len(others) - self._n(others, example) :]))
        return found

    def _others(self, demos: Sequence[Example], example: Example) -> list[Example]:
        return [demo for demo in demos if demo.query != example.query]

    def _n(self, others: Sequence[Example], example: Example) -> int:
        n = self.n_demos if self.n_demos is not None else 0 if example.context else len(others)
        return min(n, len(others))

    def _prompt(self, task: Task, example: Example, response: str | None, demos: Sequence[Example]) -> Prompt:
        text = task.separator.join(part for part in (self.text, example.context) if part)
        fits = self.fits

        def without_first(n: int) -> Prompt:
            return build_prompt(task, demos[n:], example.query, response, text)

        n = bisect_left(range(len(demos)), True, key=lambda n: fits(without_first(n), task)) if fits else 0
        return without_first(n)


def _other_halves(items: Sequence[int], place: int) -> list[int]:
    """The half that is without this place, then the other half of what is left, and so on; at last the item there."""
    found = list[int]()
    while len(items) > 1:
        middle = len(items) // 2
        if place < middle:
            found, items = [*found, *items[middle:]], items[:middle]
        else:
            found, items, place = [*found, *items[:middle]], items[middle:], place - middle
    return [*found, *items]
