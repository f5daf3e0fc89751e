"""Reading and comparing answers: what real models write, and what must not pass as the same."""

from decimal import Decimal
from fractions import Fraction
from threading import Thread

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ia2.answers import Form, first_number, form_of, read_answer, rouge_l, same_answer, whole_number


@pytest.mark.parametrize(
    ("form", "text", "answer"),
    [
        ("hash", "so 3 + 4 = 7 #### 7", "7"),
        ("hash", "first #### 1 then #### 2", "2"),
        ("hash", "####\n18 dollars\nQuestion: next", "18 dollars"),
        ("hash", "no mark: 7", None),
        ("hash", "3 + 4 = 7 ####", None),
        ("boxed", r"so \boxed{\frac{1}{2}}, done", r"\frac{1}{2}"),
        ("boxed", r"\boxed{x^{2^{n}}} done {", r"x^{2^{n}}"),
        ("boxed", r"\boxed{1} or \boxed{-3}", "-3"),
        ("boxed", r"\boxed{\boxed{5}}", "5"),
        ("boxed", r"\boxed{\{1, 2\}} and }", r"\{1, 2\}"),
        ("boxed", r"\boxed{\left\{x \right.} }", r"\left\{x \right."),
        ("boxed", r"is $\boxed 2$", "2"),
        ("boxed", r"\boxed{3}, no, \boxed 2", "2"),
        ("boxed", r"\boxed 2, no, \boxed{3}", "3"),
        ("boxed", r"\fbox{7}", "7"),
        ("boxed", r"\boxed{never closed", None),
        ("boxed", r"\boxed{ }", None),
        ("boxed", "it is 7", None),
        ("text", "  Paris. ", "Paris."),
        ("text", " \n", None),
    ],
)
def test_where_an_answer_stands(form: Form, text: str, answer: str | None) -> None:
    assert read_answer(text, form) == answer


def test_the_form_is_what_the_text_marks() -> None:
    assert [form_of(t) for t in ("a #### 1", r"a \boxed{1}", "a 1", r"\boxed{1} #### 1")] == [
        "hash",
        "boxed",
        "text",
        "hash",
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18 dollars", 18),
        ("$1,234.50", Decimal("1234.5")),
        ("$-1,234.50 in all", Decimal("-1234.5")),
        ("-$5", -5),
        ("- 5", -5),
        ("−7 degrees", -7),
        (r"\$18.", 18),
        ("**18**", 18),
        ("25%", 25),
        (r"25\%", 25),
        ("3/4 of a cup", Decimal("0.75")),
        ("-1/2", Decimal("-0.5")),
        ("1 1/2 hours", Decimal("1.5")),
        (".5", Decimal("0.5")),
        ("7.0", 7),
        ("60 km/h", 60),
        ("Rs.18", 18),
        ("answer-5", 5),
        ("x2 = 5", 5),
        ("5 (as 3 + 2 = 5)", 5),
        ("1,5", 1),
        ("1/0", None),
        ("9" * 5000, None),
        ("none", None),
    ],
)
def test_the_first_number(text: str, number: int | Decimal | None) -> None:
    assert first_number(text) == (None if number is None else Fraction(number))


@pytest.mark.parametrize("text", ["18 dollars", "3 or 4", "type 2", "1,5", "", "1/2/3", "4-5"])
def test_what_is_more_than_a_number_is_no_whole_number(text: str) -> None:
    assert whole_number(text) is None


NUMBERS = st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9)


@settings(deadline=None)
@given(NUMBERS, st.sampled_from(["{:,}", "{}", "{} dollars", "{:,} km/h.", "**{}**", "{}%", "about {:,}", "= {} ."]))
def test_every_number_is_read_back_however_it_is_written(number: Decimal, written: str) -> None:
    text = written.format(number)
    assert first_number(text) == Fraction(number)
    assert same_answer(text, str(number), "hash")
    assert not same_answer(text, str(number + 1), "hash")
    assert number == 0 or not same_answer(text, str(-number), "hash")


@settings(max_examples=30, deadline=None)
@given(st.integers(-999, 999), st.integers(1, 99))
def test_fractions(a: int, b: int) -> None:
    assert whole_number(f"{a}/{b}") == Fraction(a, b)
    assert same_answer(rf"\frac{{{a}}}{{{b}}}", f"{a}/{b}", "boxed")


@settings(deadline=None)
@given(
    st.recursive(st.text("abx +^_", max_size=5), lambda inner: st.tuples(inner, inner).map("{{{0[0]}}}{0[1]}".format))
)
def test_nested_boxes(content: str) -> None:
    expected = content.strip() or None
    assert read_answer(rf"so \boxed{{1}}, no, \boxed{{{content}}} }} {{", "boxed") == expected


@settings(deadline=None)
@given(st.text() | st.text(r"\boxed{}#$1.,/-% "))
@example("\\boxed{" * 500)
def test_no_text_is_too_strange(text: str) -> None:
    for form in ("hash", "text", "boxed"):
        for marked in (text, "#### " + text, "\\boxed{" + text):
            answer = read_answer(marked, form)
            assert answer is None or (answer and answer in marked)
            if answer and form != "boxed":
                assert same_answer(answer, answer, form)


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("The Beatles", "beatles.", True),
        ("1999", "1999.0", True),
        ("in 1999", "1999", False),
        ("1.5 km", "15 km", False),
        ("-5 degrees", "5 degrees", False),
        ("covid-19", "Covid-19", True),
        ("New York", "York New", False),
        ("A", "the", False),
        ("C", "A", False),
        ("", "a", False),
    ],
)
def test_plain_texts(found: str, wanted: str, same: bool) -> None:
    assert same_answer(found, wanted, "text") is same


def test_behind_the_mark_a_number_may_have_a_unit_but_only_if_gold_is_a_number() -> None:
    assert same_answer("18 dollars", "18", "hash")
    assert not same_answer("18 dollars", "18", "text")
    assert not same_answer("type 2 error", "type 2 diabetes", "hash")
    assert same_answer("Type 2 diabetes.", "type 2 diabetes", "hash")


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        (r"\frac12", "0.5", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        ("(x+1)(x-1)", "x^2-1", True),
        ("1,234", "1234", True),
        ("x = 3", "3", True),
        (r"(-\infty, 3]", r"(-\infty,3]", True),
        ("(1,2)", "[1,2]", False),
        ("(1,2)", "(2,1)", False),
        ("-3", "3", False),
        ("15", "1.5", False),
        ("no formula ( at all", "3", False),
    ],
)
def test_formulas(found: str, wanted: str, same: bool) -> None:
    assert same_answer(found, wanted, "boxed") is same


def test_a_formula_that_would_take_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ia2.answers.SECONDS", 1)
    assert not same_answer("9^{9^{9}}", "3", "boxed")


def test_formulas_are_compared_outside_the_main_thread_too() -> None:
    found: list[bool] = []
    thread = Thread(target=lambda: found.extend(same_answer(a, "0.5", "boxed") for a in (r"\frac12", r"\frac13")))
    thread.start()
    thread.join()
    assert found == [True, False]


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    assert rouge_l("the cat sat", "the cat sat") == 1
    precision, recall = 2 / 3, 2 / 4  # "cat mat" in common, of 3 and 4 words
    assert rouge_l("cat on mat", "a cat mats today") == pytest.approx(2 * precision * recall / (precision + recall))
    assert rouge_l("", "a cat") == 0
