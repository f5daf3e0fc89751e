"""What the teacher sees before a query."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from conftest import LABELS
from scipy.stats import chisquare

from ia2.contexts import ORDERS, TOGETHER, Contexts, Order, tfidf
from ia2.data import Example

DEMOS = tuple(Example(f"Text:{text}\nLabel:", label) for text, label in (("a b", "0"), ("c d", "1"), ("e f g", "0")))
QUERY = Example("Text:c e f\nLabel:", "1")


def queries(contexts: Contexts, example: Example = QUERY, seed: int = 0) -> list[str]:
    return [demo.query for demo in contexts.shown(example, np.random.default_rng(seed))]


def test_a_demo_is_not_shown_itself() -> None:
    for order in ("random", "fixed", "nearest"):
        assert sorted(queries(Contexts(DEMOS, order), DEMOS[1])) == sorted(d.query for d in (DEMOS[0], DEMOS[2]))


def test_orders() -> None:
    assert queries(Contexts(DEMOS, "fixed")) == [d.query for d in DEMOS]
    assert {tuple(queries(Contexts(DEMOS), seed=s)) for s in range(40)} > {tuple(d.query for d in DEMOS)}
    assert queries(Contexts(DEMOS, "nearest", 2)) == [DEMOS[1].query, DEMOS[2].query]  # the most similar last
    reverse = Contexts(DEMOS, "nearest", 2, similarity=lambda queries, demos: -tfidf(queries, demos))
    assert queries(reverse)[-1] == DEMOS[0].query


ROWS = tuple(Example(f"Text:{i}\nLabel:", "0") for i in range(6))


@pytest.fixture
def from_two_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ia2.contexts.TOGETHER", 2)


def drawn_together(contexts: Contexts, examples: Sequence[Example], seed: int) -> list[tuple[str, ...]]:
    prompts = contexts.prompts(LABELS, examples, np.random.default_rng(seed))
    return [tuple(query for query, _ in prompt.demos) for prompt in prompts]


@pytest.mark.usefixtures("from_two_on")
def test_orders_that_are_drawn_together_are_each_as_likely() -> None:
    counts: Counter[tuple[int, tuple[str, ...]]] = Counter()
    for seed in range(4800):
        counts.update(enumerate(drawn_together(Contexts(ROWS[:4]), ROWS[:5], seed)))
    of_row = [[n for (row, _), n in counts.items() if row == i] for i in range(5)]
    assert [len(of) for of in of_row] == [6, 6, 6, 6, 24]  # every order of the others; of all, for who is no demo
    for of in of_row:
        assert chisquare(of).pvalue > 1e-3


@pytest.mark.usefixtures("from_two_on")
@pytest.mark.parametrize("n", [2, 3, 5, 8, 64])
def test_orders_that_are_drawn_together_begin_alike(n: int) -> None:
    rows = tuple(Example(str(i), "0") for i in range(n))
    orders = drawn_together(Contexts(rows), rows, 0)
    for row, order in zip(rows, orders, strict=True):
        assert sorted(order) == sorted(other.query for other in rows if other is not row)
    beginnings = {order[: k + 1] for order in orders for k in range(n - 1)}
    assert len(beginnings) <= n * np.ceil(np.log2(n))


def test_orders_of_few_demos_are_drawn_one_by_one() -> None:
    for n, alone in ((TOGETHER - 1, True), (TOGETHER, False)):
        rows = tuple(Example(str(i), "0") for i in range(n))
        rng = np.random.default_rng(0)
        one_by_one = [tuple(query for query, _ in Contexts(rows).prompt(LABELS, e, "0", rng).demos) for e in rows]
        assert (drawn_together(Contexts(rows), rows, 0) == one_by_one) == alone


@pytest.mark.usefixtures("from_two_on")
def test_queries_that_are_no_demos_stand_beside_each_of_them_by_turns() -> None:
    others = [Example(f"Text:new {i}\nLabel:", "0") for i in range(60)]
    orders = drawn_together(Contexts(ROWS), others, 0)
    for start in range(0, 60, len(ROWS)):
        assert {order[-1] for order in orders[start : start + len(ROWS)]} == {row.query for row in ROWS}
    assert all(len(set(order)) == len(ROWS) for order in orders)
    assert len(set(orders)) > 50


@pytest.mark.usefixtures("from_two_on")
def test_a_row_that_comes_twice_has_two_orders() -> None:
    rows = tuple(Example(str(i), "0") for i in range(16))
    first, second = drawn_together(Contexts(rows), (rows[3], rows[3]), 0)
    assert first != second
    assert sorted(first) == sorted(second)


@pytest.mark.usefixtures("from_two_on")
def test_of_fewer_demos_the_last_ones_are_shown() -> None:
    whole, few = drawn_together(Contexts(ROWS), ROWS, 0), drawn_together(Contexts(ROWS, n_demos=2), ROWS, 0)
    assert few == [order[-2:] for order in whole]


@pytest.mark.parametrize("order", ["fixed", "nearest"])
def test_other_orders_are_those_of_each_alone(order: Order) -> None:
    contexts, rng = Contexts(DEMOS, order), np.random.default_rng(0)
    alone = [contexts.prompt(LABELS, row, row.label, rng) for row in (*DEMOS, QUERY)]
    assert contexts.prompts(LABELS, (*DEMOS, QUERY), rng) == alone


@pytest.mark.usefixtures("from_two_on")
def test_a_row_with_another_response_is_not_shown_its_own_label() -> None:
    answered = Example(DEMOS[0].query, "1")
    for contexts in (Contexts(DEMOS, order) for order in ORDERS):
        assert DEMOS[0].query not in queries(contexts, answered)
        assert DEMOS[0].query not in drawn_together(contexts, [answered], 0)[0]


def test_tfidf_equals_cosines_by_hand() -> None:
    texts = [d.query for d in DEMOS]
    bags = [re.findall(r"\w+", text.lower()) for text in (QUERY.query, *texts)]
    words = sorted({word for bag in bags[1:] for word in bag})
    idf = [np.log((1 + len(texts)) / (1 + sum(word in bag for bag in bags[1:]))) + 1 for word in words]
    vectors = np.array([[bag.count(word) * i for word, i in zip(words, idf, strict=True)] for bag in bags])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert tfidf([QUERY.query], texts)[0] == pytest.approx(vectors[1:] @ vectors[0])


def test_texts_come_first_and_a_row_with_one_of_its_own_is_shown_no_demos() -> None:
    rng = np.random.default_rng(0)
    prompt = Contexts(DEMOS, "fixed", text="Be brief.").prompt(LABELS, QUERY, "1", rng)
    assert "".join(prompt.context).startswith("Be brief.\n\nText:a b\nLabel:0\n\nText:c d\nLabel:1\n\n")
    own = Example(QUERY.query, "1", context="It is cold.")
    prompt = Contexts(DEMOS, text="Be brief.").prompt(LABELS, own, "1", rng)
    assert "".join(prompt.context) == "Be brief.\n\nIt is cold.\n\n"
    assert (prompt.query, prompt.response) == (QUERY.query, "1")
    assert len(Contexts(DEMOS, n_demos=2).prompt(LABELS, own, "1", rng).context) == 2 + 2 * 3


def test_demos_are_left_out_first_ones_first_until_the_prompt_fits() -> None:
    rng = np.random.default_rng(0)
    for room, n_left in ((0, 0), (2, 0), (3, 1), (5, 1), (6, 2), (8, 2), (9, 3), (99, 3)):
        contexts = Contexts(DEMOS, "fixed", fits=lambda prompt, task, room=room: len(prompt.context) <= room)
        prompt = contexts.prompt(LABELS, QUERY, "1", rng)
        left = DEMOS[len(DEMOS) - n_left :]
        assert prompt.context == tuple(part for demo in left for part in (demo.query, demo.label, "\n\n"))


def test_that_a_prompt_fits_is_asked_for_a_few_numbers_of_demos_only() -> None:
    asked: list[int] = []
    demos = tuple(Example(f"Text:{i}\nLabel:", "0") for i in range(5000))
    contexts = Contexts(demos, "fixed", fits=lambda prompt, task: asked.append(0) or len(prompt.context) <= 300)
    assert len(contexts.prompt(LABELS, QUERY, "1", np.random.default_rng(0)).context) == 300
    assert len(asked) < 15
