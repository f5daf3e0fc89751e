"""What is forgotten of other tasks, beside what transformers and arithmetic by hand say."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GENERATED, LABELS, example_rows, reasoned_rows

from ia2.adapters import new_adapter
from ia2.analysis import Other, diversity, forgetting, read_other
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.evaluation import Variant
from ia2.files import write_jsonl
from ia2.models import LanguageModel, load_model
from ia2.prompt import build_prompt
from ia2.task import Task

ROWS = Path(__file__).parent.parent / "examples" / "mood" / "test.jsonl"
MINE = Variant("mine", adapter="default")


def naive_nll(lm: LanguageModel, task: Task, row: Example, demos: tuple[Example, ...]) -> float:
    """The mean over response tokens, of one row, by the loss of transformers."""
    tokens = lm.encoder.encode(build_prompt(task, demos, row.query, row.label))
    ids = torch.tensor([tokens.ids])
    labels = ids.clone()
    labels[:, : -tokens.n_response] = -100
    with torch.no_grad():
        return float(lm.model(input_ids=ids, labels=labels).loss)


@pytest.mark.parametrize("task", [LABELS, GENERATED], ids=["labels", "generated"])
def test_perplexity_and_its_change_are_those_of_transformers(task: Task, lm: LanguageModel) -> None:
    rows = tuple((example_rows if task.labels else reasoned_rows)(20))
    other = Other(task, rows[:2], rows[2:])
    with new_adapter(lm, "lora", {"init_lora_weights": False}):
        found = forgetting(lm, {"o": other}, [MINE])["o"]
        for shown, demos in (("query", ()), ("demos", other.demos)):
            own = [naive_nll(lm, task, row, demos) for row in other.rows]
            with lm.model.disable_adapter():
                before = [naive_nll(lm, task, row, demos) for row in other.rows]
            of = found[shown]
            assert of["methods"]["mine"]["nll"]["value"] == pytest.approx(sum(own) / len(other.rows), abs=1e-5)
            assert of["methods"]["before"]["perplexity"]["value"] == pytest.approx(
                math.exp(sum(before) / len(other.rows)), rel=1e-5
            )
            change = of["differences"]["mine - before"]["nll"]
            assert change["value"] == pytest.approx((sum(own) - sum(before)) / len(other.rows), abs=1e-5)
            assert change["low"] < change["value"] < change["high"]
            assert ("diversity" in of) == (task.labels is None)
    assert found["query"] != found["demos"]


def test_an_adapter_that_does_nothing_forgets_nothing(lm: LanguageModel) -> None:
    rows = tuple(reasoned_rows(26))
    with new_adapter(lm, "lora", {}):
        found = forgetting(lm, {"o": Other(GENERATED, rows[:2], rows[2:])}, [MINE])["o"]
    for of in found.values():
        nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
        assert of["differences"]["mine - before"] == {"accuracy": nothing, "nll": nothing}
        assert of["diversity"]["mine"] == of["diversity"]["before"] != of["diversity"]["gold"]


def test_accuracy_is_that_of_the_answers() -> None:
    """Demos make the embedded model right about a task of its world, as it is without an adapter."""
    lm, other = load_model("tiny", device="cpu"), read_other("mood", LABELS)
    found = forgetting(lm, {"mood": replace(other, rows=other.rows[:50])}, [])["mood"]
    accuracy = {shown: of["methods"]["before"]["accuracy"]["value"] for shown, of in found.items()}
    assert accuracy["demos"] > accuracy["query"] + 0.1


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a b a b", "a b"], (2 / 6, 2 / 4, 1)),  # ab ba ab, ab
        (["one", "one", "two", "three"], (3 / 4, 0, 3 / 4)),
        (["same words here"] * 4, (3 / 12, 2 / 8, 1 / 4)),
        ([], (0, 0, 0)),
        ([""], (0, 0, 1)),
    ],
)
def test_diversity_is_what_counting_by_hand_gives(texts: list[str], expected: tuple[float, ...]) -> None:
    assert tuple(of["value"] for of in diversity(texts).values())[:3] == pytest.approx(expected)


def test_rows_of_another_task_come_from_a_file_or_a_name(tmp_path: Path) -> None:
    like = replace(GENERATED, separator="\n", max_new_tokens=3)
    other = read_other(str(ROWS), like)
    assert (other.task.separator, other.task.max_new_tokens) == ("\n", 3)
    assert other.task.labels == ("0", "1")
    assert (len(other.demos), len(other.rows)) == (8, 92)
    named = read_other("time-choice", like)
    assert (len(named.demos), len(named.rows)) == (8, 200)
    assert named.task.separator == "\n\n"
    assert not {demo.query for demo in named.demos} & {row.query for row in named.rows}
    write_jsonl(tmp_path / "few.jsonl", [{"query": str(i), "response": str(i)} for i in range(23)])
    with pytest.raises(IA2Error, match=r"few.jsonl: found 15 rows beside 8 demos; expected at least 16"):
        read_other(str(tmp_path / "few.jsonl"), like)
    with pytest.raises(IA2Error, match="no such file"):
        read_other("none.jsonl", like)
    with pytest.raises(IA2Error, match="did you mean"):
        read_other("time-choise", like)


def test_self_bleu_by_hand() -> None:
    """Of `a b c d`, all but the whole is in the others; of these, 3 of 4 words, 2 of 3 pairs, 1 of 2 triples."""
    first, others = 0.1**0.25, (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25
    assert self_bleu(["a b c d", "a b c x", "y b c d"]) == pytest.approx((first + 2 * others) / 3)
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1)
    assert self_bleu(["a b c d", "e f g h", "i j k l"]) < 0.05
    for texts in ([], [""], ["a"], ["", ""]):
        assert self_bleu(texts) == 0


def self_bleu(texts: list[str]) -> float:
    return diversity(texts)["self_bleu"]["value"]
