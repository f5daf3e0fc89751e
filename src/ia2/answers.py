r"""Answers in generated text: where they stand (`####`, `\boxed{}`, or the whole text), and which say the same."""

import re
import string
import threading
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import cache
from multiprocessing import get_context
from typing import Any, Literal

Form = Literal["hash", "boxed", "text"]
SECONDS = 5  # for each step of comparing two formulas, which could be made to last for ever
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    r"(?:(?P<sign>(?<!\w)[-+−–])\s?)?(?:\\?[$€£¥]\s?(?P<inner>[-+−–])?)?(?<!\w)"
    rf"(?:(?P<whole>\d+)\s+(?=\d+\s?/\s?\d))?(?P<number>{_DIGITS})(?:\s?/\s?(?P<divisor>{_DIGITS}))?"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{|[^\s{$]+)")


def form_of(text: str) -> Form:
    """How a text marks its answer."""
    return "hash" if "####" in text else "boxed" if _BOX.search(text) else "text"


def read_answer(text: str, form: Form) -> str | None:
    r"""The answer in a text; None if there is none.

    Args:
        text: what was generated, or a gold response.
        form: `hash`: the line behind the last `####`; `boxed`: in the last `\boxed{}`, braces matched;
            `text`: the whole of it.
    """
    if form == "hash":
        text = text.rpartition("####")[2].strip().partition("\n")[0] if "####" in text else ""
    elif form == "boxed":
        boxes = list(_BOX.finditer(text))
        text = "" if not boxes else boxes[-1][1] if boxes[-1][1] != "{" else _braced(text[boxes[-1].end() :])
    return text.strip() or None


def _braced(text: str) -> str:
    """`text` up to the brace that closes the one before it; empty if none does. A brace behind a backslash is text."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[: match.start()]
    return ""


def same_answer(found: str, wanted: str, form: Form) -> bool:
    r"""Whether two answers, as `read_answer` gives them, say the same; `wanted` is the gold one.

    `hash`: if the gold answer is a number, the first number in the other, whatever unit stands with it; else as `text`.
    `boxed`: mathematical equality (math-verify). `text`: equal numbers, or the same words in the same order, as SQuAD
    compares them: without case, articles and punctuation (but what stands before a digit: 1.5 is not 15).
    """
    if form == "boxed":
        return "".join(found.split()) == "".join(wanted.split()) or _same_formula(found, wanted)
    if (gold := whole_number(wanted)) is not None and form == "hash":
        return gold == first_number(found)
    return _words(found) == _words(wanted) or (gold is not None and gold == whole_number(found))


def first_number(text: str) -> Fraction | None:
    """The first number in a text: with sign, thousands separators, decimals, as a fraction or a mixed number."""
    return _value(_NUMBER.search(text))


def whole_number(text: str) -> Fraction | None:
    """The number that the whole text is, but for a currency or percent sign, or a full stop."""
    return _value(_NUMBER.fullmatch(re.sub(r"\s*\\?%?\s*\.?$", "", text.strip())))


def _value(match: re.Match[str] | None) -> Fraction | None:
    if match is None:
        return None
    try:
        value = Fraction(match["number"].replace(",", ""))
        value = value / Fraction((match["divisor"] or "1").replace(",", "")) + Fraction(match["whole"] or 0)
    except (ValueError, ZeroDivisionError):  # longer than Python reads, or a division by nothing
        return None
    return -value if (match["sign"] or match["inner"] or "+") in "-−–" else value


def _words(text: str) -> list[str]:
    """As SQuAD v1.1 normalises answers, but for punctuation before a digit."""
    kept = re.sub(rf"[{re.escape(string.punctuation)}](?!\d)|[^\w\s.,-]", "", text.casefold())
    return [word for word in kept.split() if word not in ("a", "an", "the")] or text.casefold().split()


def _same_formula(found: str, wanted: str) -> bool:
    """By math-verify, which ends what lasts too long by a signal: outside a main thread, in a process of its own."""
    if threading.current_thread() is threading.main_thread():
        return _verified(found, wanted)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_verified, found, wanted).result()


def _verified(found: str, wanted: str) -> bool:
    from math_verify import parse, verify

    gold, answer = (
        parse(f"\\boxed{{{text}}}", parsing_timeout=SECONDS, raise_on_error=False) for text in (wanted, found)
    )
    return bool(verify(gold, answer, timeout_seconds=SECONDS, raise_on_error=False))


def rouge_l(text: str, wanted: str) -> float:
    """ROUGE-L, F-measure with stemming, in [0, 1] (Lin 2004; the rouge-score package)."""
    return float(_rouge_scorer().score(wanted, text)["rougeL"].fmeasure)


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
