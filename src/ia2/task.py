"""What an answer is: one of a set of labels, or generated text from which the answer is read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ia2.answers import Form, form_of, read_answer, rouge_l, same_answer
from ia2.data import Example

MAX_LABELS = 20
Parser = Literal["auto", Form]
Metric = Literal["exact_match", "rouge"]


@dataclass(frozen=True)
class Task:
    r"""How demos are joined and answers are scored.

    Attributes:
        labels: the possible responses; None if the response is generated.
        separator: what stands between two demos, and ends a generated response.
        max_new_tokens: the longest generated response, in tokens.
        parser: where a generated answer stands: behind `####` (`hash`), in `\boxed{}` (`boxed`), the whole `text`;
            `auto`: as each text marks it.
        length_normalised: whether a label's log-probability is divided by its number of tokens.
        metric: how a generated answer is scored: `exact_match` of what the parser reads, or `rouge` (ROUGE-L).
    """

    labels: tuple[str, ...] | None
    separator: str = "\n\n"
    max_new_tokens: int = 200
    parser: Parser = "auto"
    metric: Metric = "exact_match"
    length_normalised: bool = False

    def completion(self, response: str) -> str:
        """The text that a model is trained to write: it must also learn to stop, unless it chooses among labels.

        Where one label begins another, its end too is part of what it says.
        """
        labels = self.labels or ()
        nested = any(a != b and b.startswith(a) for a in labels for b in labels)
        return response if labels and not nested else response + self.separator

    def parse(self, answer: str) -> str | None:
        """What the answer says: the label, or what the parser reads; None if there is none."""
        if self.labels:
            return answer if answer in self.labels else None
        return read_answer(answer, form_of(answer) if self.parser == "auto" else self.parser)

    def score(self, answer: str, response: str) -> float:
        """How well `answer` (a label, or generated text) says what the gold `response` says, in [0, 1].

        1 or 0 for labels and exact match; an answer that cannot be parsed gets 0.
        """
        if not self.labels and self.metric == "rouge":
            return rouge_l(answer, response)
        found, wanted = self.parse(answer), self.parse(response)
        if found is None or wanted is None:
            return 0.0
        if self.labels:
            return float(found == wanted)
        return float(same_answer(found, wanted, form_of(response) if self.parser == "auto" else self.parser))

    def correct(self, answer: str, response: str) -> bool:
        """Whether the score is 1."""
        return self.score(answer, response) == 1.0


def infer_labels(examples: Iterable[Example]) -> tuple[str, ...] | None:
    """The distinct responses if there are at most 20 of them and at most half as many as rows; else None."""
    responses = [example.label for example in examples]
    labels = tuple(sorted(set(responses)))
    return labels if len(labels) <= min(MAX_LABELS, len(responses) // 2) else None
