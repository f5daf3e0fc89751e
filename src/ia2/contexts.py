"""What stands before a query for the teacher: demos, and any other text."""

from bisect import bisect_left
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
        fits: whether a prompt fits the model's window; if given, first demos are left out until it does.
    """

    demos: tuple[Example, ...]
    order: Order = "random"
    n_demos: int | None = None
    text: str = ""
    similarity: Similarity = tfidf
    fits: Callable[[Prompt], bool] | None = None

    def shown(self, example: Example, rng: np.random.Generator) -> list[Example]:
        """The demos of a query, in order."""
        others = [demo for demo in self.demos if demo is not example]
        n = self.n_demos if self.n_demos is not None else 0 if example.context else len(others)
        n = min(n, len(others))
        if self.order == "random":
            return [others[i] for i in rng.permutation(len(others))[:n]]
        if self.order == "nearest" and n:
            scores = self.similarity([example.query], [demo.query for demo in others])[0]
            return [others[i] for i in np.argsort(scores, kind="stable")[len(others) - n :]]
        return others[:n]

    def prompt(self, task: Task, example: Example, response: str | None, rng: np.random.Generator) -> Prompt:
        """The teacher's prompt for a query."""
        text = task.separator.join(part for part in (self.text, example.context) if part)
        demos, fits = self.shown(example, rng), self.fits

        def without_first(n: int) -> Prompt:
            return build_prompt(task, demos[n:], example.query, response, text)

        n = bisect_left(range(len(demos)), True, key=lambda n: fits(without_first(n))) if fits else 0
        return without_first(n)
