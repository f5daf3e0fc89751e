"""Reading answers from generated text."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ia2.task import Task, parse_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 3 + 4 = 7 #### 7", Decimal(7)),
        ("#### -12", Decimal(-12)),
        ("#### $-1,234.50", Decimal("-1234.5")),
        ("#### -$5", Decimal(-5)),
        ("#### 1,000,000.", Decimal(1000000)),
        ("#### 7.0", Decimal(7)),
        ("#### .5", Decimal("0.5")),
        ("first #### 1 then #### 2", Decimal(2)),
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{x^{2^{n}}} done {", r"x^{2^{n}}"),
        (r"\boxed{1} or \boxed{-3}", Decimal(-3)),
        (r"\boxed{never closed", None),
        ("####", None),
        ("  Paris. ", "Paris"),
        ("", None),
    ],
)
def test_answers(text: str, answer: object) -> None:
    assert parse_answer(text) == answer


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9))
def test_every_number_is_read_back(number: Decimal) -> None:
    assert parse_answer(f"thus #### {number:,}") == number


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    parse_answer(text)
    parse_answer("#### " + text)
    parse_answer("\\boxed{" + text)


def test_correct() -> None:
    assert Task(None).correct("a b #### 7.0", "x #### 7")
    assert not Task(None).correct("####", "####")
    assert not Task(None).correct("#### 7", "#### -7")
    assert Task(("0", "1")).correct("1", "1")
