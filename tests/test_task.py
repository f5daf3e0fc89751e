"""Scoring answers."""

import pytest
from conftest import example_rows

from ia2.data import Example
from ia2.task import Metric, Parser, Task, infer_labels

METRICS: tuple[Metric, ...] = ("rouge", "exact_match")


@pytest.mark.parametrize(
    ("parser", "answer", "response", "correct"),
    [
        ("auto", "a b #### 7.0", "x #### 7", True),
        ("auto", "a b #### 7", "x #### -7", False),
        ("auto", "####", "####", False),
        ("auto", r"\boxed{\frac12}", r"so \boxed{0.5}", True),
        ("auto", "Paris.", "paris", True),
        ("hash", "it is 7", "#### 7", False),
        ("hash", "#### 7 apples", "#### 7", True),
        ("boxed", "#### 7", r"\boxed{7}", False),
        ("text", "#### 7", "7", True),
        ("text", "", "", False),
    ],
)
def test_generated_answers(parser: Parser, answer: str, response: str, correct: bool) -> None:
    task = Task(None, parser=parser)
    assert task.correct(answer, response) is correct
    assert task.score(answer, response) == float(correct)


def test_what_cannot_be_parsed_is_none_and_scores_nothing() -> None:
    for task, answer in [
        (Task(None, parser="hash"), "seven"),
        (Task(None, parser="boxed"), r"\boxed{7"),
        (Task(None), " "),
        (Task(("0", "1")), ""),
        (Task(("0", "1")), "2"),
    ]:
        assert task.parse(answer) is None
        assert task.score(answer, answer) == 0


def test_labels_are_equal_or_not() -> None:
    task = Task(("0", "1"))
    assert (task.score("1", "1"), task.score("1", "0")) == (1.0, 0.0)
    assert task.completion("1") == "1"
    assert Task(None).completion("1") == "1\n\n"


def test_rouge_gives_part_of_the_score() -> None:
    rouge, exact = (Task(None, metric=metric) for metric in METRICS)
    assert rouge.score("one dog barks", "dog barks") == pytest.approx(0.8)
    assert exact.score("one dog barks", "dog barks") == 0
    assert rouge.correct("dog barks", "dog barks")
    assert not rouge.correct("one dog barks", "dog barks")


def test_labels_are_inferred_from_few_distinct_responses() -> None:
    assert infer_labels(example_rows(8)) == ("0", "1")
    assert infer_labels(example_rows(3)) is None
    assert infer_labels([Example("q", str(i % 21)) for i in range(84)]) is None


def test_where_one_label_begins_another_its_end_is_learnt_too() -> None:
    assert Task(("1", "10")).completion("1") == "1\n\n"
    assert Task(("1", "20")).completion("1") == "1"
