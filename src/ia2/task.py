"""What an answer is: one of a set of labels, or generated text from which the answer is read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from ia2.data import Example

MAX_LABELS = 20


@dataclass(frozen=True)
class Task:
    """How demos are joined and answers are scored.

    Attributes:
        labels: the possible responses; None if the response is generated.
        separator: what stands between two demos, and ends a generated response.
        max_new_tokens: the longest generated response, in tokens.
    """

    labels: tuple[str, ...] | None
    separator: str = "\n\n"
    max_new_tokens: int = 200

    def completion(self, response: str) -> str:
        """The text that a model is trained to write: a generated response must also learn to stop."""
        return response if self.labels else response + self.separator

    def correct(self, answer: str, response: str) -> bool:
        """Whether `answer` (a label, or generated text) says the same as the gold `response`."""
        if self.labels:
            return answer == response
        found, wanted = parse_answer(answer), parse_answer(response)
        return found is not None and found == wanted


def infer_labels(examples: Iterable[Example]) -> tuple[str, ...] | None:
    """The distinct responses if there are at most 20 of them and at most half as many as rows; else None."""
    responses = [example.label for example in examples]
    labels = tuple(sorted(set(responses)))
    return labels if len(labels) <= min(MAX_LABELS, len(responses) // 2) else None


def parse_answer(text: str) -> str | Decimal | None:
    r"""The answer in a generated text: after the last `####`, in the last `\boxed{}`, or else the whole text.

    A number is returned as a number: signs and decimals are kept; thousands separators and currency signs dropped.
    None if there is no answer.
    """
    if "####" in text:
        text = text.rsplit("####", 1)[1]
    elif "\\boxed{" in text:
        text = _braced(text.rsplit("\\boxed{", 1)[1])
    text = text.strip().removesuffix(".").strip()
    number = re.fullmatch(r"([-+]?)\s*[$€£]?\s*([-+]?[\d,]*\.?\d+)\s*%?", text)
    if number:
        try:
            return Decimal((number[1] + number[2]).replace(",", "")).normalize()
        except InvalidOperation:
            pass
    return text or None


def _braced(text: str) -> str:
    """`text` up to the brace that closes the one before it; empty if none does."""
    depth = 1
    for i, char in enumerate(text):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth == 0:
            return text[:i]
    return ""
