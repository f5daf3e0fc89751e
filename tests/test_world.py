"""The embedded world: its words and tasks are what they say, and its models learn in context for the right reason."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from ia2.world import MODELS, STOP, TASKS, WorldTask
from ia2.world.curriculum import CURRICULUM, WINDOW, Batch, Part, Phase, Place, draw_batch
from ia2.world.in_context import InContext, in_context
from ia2.world.pretrain import PLANS, Plan, pretrain
from ia2.world.text import CUES, VOCABULARY, decode
from ia2.world.tokenizer import build_tokenizer
from ia2.world.words import ATTRIBUTES, HELD_OUT_PAIRS, HELD_OUT_SUMS, LABEL_WORDS, N_USED, WORDS

BOTH = pytest.mark.parametrize("name", list(MODELS))
MEANING = {
    word: (attribute, value) for attribute, of in enumerate(ATTRIBUTES) for value in (0, 1) for word in of.words[value]
}  # an independent reading of the words: attribute and class
RARE = {word for of in ATTRIBUTES for words in of.words for word in words[N_USED:]}


@cache
def loaded(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODELS[name])
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return AutoModelForCausalLM.from_pretrained(MODELS[name]), tokenizer


@cache
def answers(name: str, task: str, n_demos: int = 24, shuffle: bool = False, n_sequences: int = 40) -> InContext:
    return in_context(*loaded(name), TASKS[task], n_demos, n_sequences, shuffle=shuffle)


def late(result: InContext) -> float:
    """Accuracy behind at least 8 demos."""
    return result.hits[:, 8:].float().mean().item()


# ---- words, tasks, tokenizer


def test_every_word_belongs_to_one_class_and_is_no_label() -> None:
    assert len(WORDS) == len(MEANING) == 8 * 2 * 20
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert not set(LABEL_WORDS) & set(WORDS)


def test_importing_the_world_is_light() -> None:
    code = "import sys, ia2.world; print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tasks_name_their_sisters_and_enough_of_each_kind() -> None:
    assert len(TASKS) >= 12
    for name, task in TASKS.items():
        assert task.name == name
        if task.ood_of is not None:
            sister = TASKS[task.ood_of]
            assert sister.ood_of is None
            assert (sister.kind, sister.rule, sister.inverted) == (task.kind, task.rule, task.inverted)
    kinds = Counter(task.kind for task in TASKS.values())
    assert min(kinds.values()) >= 2
    assert sum(task.held_out for task in TASKS.values()) >= 4


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_rows_are_right_repeatable_prefix_stable_distinct_and_apart(task: WorldTask) -> None:
    rows = task.rows(300, seed=3)
    assert rows == task.rows(300, seed=3)
    assert rows[:70] == task.rows(70, seed=3)
    assert rows != task.rows(300, seed=4)
    splits = ("train", "dev", "test")
    queries = {split: {row["query"] for row in task.rows(300, seed=3, split=split)} for split in splits}
    assert all(len(of_split) == 300 for of_split in queries.values())
    elsewhere = {row["query"] for row in task.rows(300, seed=4, split="test")}
    assert not queries["train"] & queries["dev"]
    assert not (queries["train"] | queries["dev"]) & elsewhere
    said = Counter(row["response"] for row in rows)
    if task.labels is not None:
        assert set(said) == set(task.labels)
        assert min(said.values()) > 300 / len(task.labels) * 0.7
    for row in rows:
        assert row["response"] == right_answer(task, row["query"]), row


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'training'"):
        TASKS["mood"].rows(1, 0, "training")


def right_answer(task: WorldTask, query: str) -> str:
    """The response by the task's description, read from the text alone."""
    if task.kind == "choice":
        zero, one = task.labels or ()
        assert query.endswith(f"\nChoices:\n[{zero}]0\n[{one}]1\n\nAnswer:")
    text = re.match(r"(?:Text|Question):([a-z ]+)\n(Label|Answer|Choices):", query)
    assert text
    words = text[1].split(" ")
    assert len(words) == len({MEANING[w][0] for w in words}) == task.n_words
    assert {w in RARE for w in words} == {task.rare}
    deciding = [w for w in words if MEANING[w][0] in task.rule]
    values = [MEANING[w][1] ^ task.inverted for w in deciding]
    if task.labels:
        return task.labels[values[0]]
    return " ".join(f"{w} {v}" for w, v in zip(deciding, values, strict=True)) + f" #### {sum(values)}"


@BOTH
def test_tokens_are_the_same_whole_or_apart_and_decode_to_the_text(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS[name])
    assert tokenizer.padding_side == "right"
    assert tokenizer.model_max_length == 1152
    for task in TASKS.values():
        rows = task.rows(3, 0)
        text = STOP.join(row["query"] + row["response"] for row in rows) + STOP
        whole = tokenizer(text)["input_ids"]
        apart = [tokenizer.bos_token_id]
        for row in rows:
            for part in (row["query"], row["response"], STOP):
                apart += tokenizer(part, add_special_tokens=False)["input_ids"]
        assert whole == apart
        assert tokenizer.unk_token_id not in whole
        assert tokenizer.decode(whole, skip_special_tokens=True) == text
        assert tokenizer.decode(whole[1:]) == text
        response = tokenizer(rows[0]["response"], add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(response) == rows[0]["response"]
        if task.labels:
            assert len(response) == 1
    spaced = tokenizer("Text: gloomy  soup\nLabel:", add_special_tokens=False)["input_ids"]
    assert spaced == tokenizer("Text:gloomy soup\nLabel:", add_special_tokens=False)["input_ids"]
    assert tokenizer("Text:serendipity", add_special_tokens=False)["input_ids"][1] == tokenizer.unk_token_id
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


# ---- what pretraining shows


LAST = {part.family: replace(part, listed=(2,)) for part in CURRICULUM[-1].parts}


def last_batches(family: str, n: int) -> list[Batch]:
    return [draw_batch(np.random.default_rng([9, i]), LAST[family], last=True) for i in range(n)]


def family_of(task: WorldTask) -> str:
    return "words" if task.kind == "label" and task.labels != ("0", "1") else task.kind


@pytest.mark.parametrize("family", list(LAST))
def test_batches_decode_to_the_text_that_tasks_use(family: str) -> None:
    tokenizer = build_tokenizer()
    form = {
        "label": rf"Text:[a-z ]+(\nLabel:|{'|'.join(CUES)})[01]",
        "words": rf"Text:[a-z ]+(\nLabel:|{'|'.join(CUES)})({'|'.join(LABEL_WORDS)})",
        "sum": r"Text:[a-z ]+\nAnswer:[a-z]+ [01] [a-z]+ [01] #### [012]",
        "choice": rf"Question:[a-z ]+\nChoices:\n\[(\w+)\]0\n\[(\w+)\]1(\n\nAnswer:|{'|'.join(CUES)})(\1|\2)",
    }[family]
    for task in TASKS.values():
        if family_of(task) == family:
            for row in task.rows(20, 0):
                assert re.fullmatch(form, row["query"] + row["response"])
    for batch in last_batches(family, 4):
        for ids in batch.ids[:3]:
            text = decode(ids[1:])
            assert tokenizer(text)["input_ids"] == ids.tolist()
            samples = re.split(r"\n\n(?!Answer)", text)
            assert samples.pop() == ""
            assert len(samples) == len(batch.places)
            for sample, places in zip(samples, batch.places, strict=True):
                assert re.fullmatch(form, sample)
                assert sample.endswith(decode(ids[places[:-1]]))
                assert decode(ids[places[-1:]]) == STOP


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_choice_lists_as_many_options_as_the_part_says(n: int) -> None:
    batch = draw_batch(np.random.default_rng(0), replace(LAST["choice"], listed=(n,)))
    for text in map(decode, batch.ids[:, 1:]):
        samples = re.split(r"\n\n(?!Answer)", text)[:-1]
        assert [len(re.findall(r"\n\[\w+\]\d", sample)) for sample in samples] == [n] * len(samples)


@pytest.mark.parametrize("last", [False, True])
def test_the_first_answer_is_a_coin_s_throw_in_the_last_phase_only(last: bool) -> None:
    part = Part("label", (1,), 2, 2000, named=1.0)
    batch = draw_batch(np.random.default_rng(0), part, last)
    said = [re.match(r"Text:(\w+)\n\w+:([01])", decode(ids[1:])) for ids in batch.ids]
    usual = np.mean([MEANING[match[1]][1] == int(match[2]) for match in said if match])
    assert usual == (pytest.approx(0.5, abs=0.15) if last else 1.0)
    assert (batch.first == 1.0) is last


def test_what_is_held_out_never_occurs_in_pretraining() -> None:
    seen_pairs, seen_sums = set(), set()
    for family in LAST:
        for batch in last_batches(family, 60):
            for ids in batch.ids:
                text = decode(ids[1:])
                words = set(re.findall(r"\w+", text))
                for pair in HELD_OUT_PAIRS:
                    assert not set(pair) <= words
                if words & RARE:
                    assert family == "label"
                    assert "\nLabel:" not in text
                if family == "words":
                    seen_pairs.add(frozenset(words & set(LABEL_WORDS)))
                if family == "sum":
                    seen_sums.add(tuple(sorted(MEANING[w][0] for w in re.findall(r"([a-z]+) [01]", text)[:2])))
    assert not seen_sums & set(HELD_OUT_SUMS)
    assert len(seen_sums) == 28 - len(HELD_OUT_SUMS)
    assert len(seen_pairs) > 90  # of 110: the check saw what it checks


def test_pretraining_resumed_half_way_ends_with_the_same_bytes(tmp_path: Path) -> None:
    parts = (Part("label", (1, 2), 4, 60), Part("sum", (2,), 3, 60, ramp=2))
    phases = (Phase("one", parts, steps=2), Phase("last", parts, steps=3, last=True))
    plan = Plan(width=16, layers=1, heads=2, inner=24, curriculum=phases, save_every=2)
    teacher = pretrain("tiny", tmp_path / "teacher", plan=plan)
    for name in MODELS:
        of = teacher if name == "tiny-gpt2" else None
        pretrain(name, tmp_path / "whole", plan=plan, teacher=of)
        pretrain(name, tmp_path / "parts", plan=plan, teacher=of, stop_at=4)
        assert not (tmp_path / "parts" / "model.safetensors").exists()
        pretrain(name, tmp_path / "parts", plan=plan, teacher=of, resume=True)
        whole, parted = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "parts"))
        assert whole == parted
        pretrain(name, tmp_path / "other", seed=1, plan=plan, teacher=of)
        assert (tmp_path / "other" / "model.safetensors").read_bytes() != whole
        (tmp_path / "parts" / "model.safetensors").unlink()


def test_a_phase_is_left_when_its_gate_is_passed_or_its_steps_are_over() -> None:
    phases = (Phase("gated", (), gate=0.9), Phase("counted", (), steps=3), Phase("last", (), steps=10, last=True))
    place = Place()
    for _ in range(WINDOW - 1):
        place.advance(phases, 1.0)
    place.advance(phases, None)
    assert place.phase == 0
    place.advance(phases, 0.95)
    assert place.phase == 1
    for _ in range(3):
        assert place.phase == 1
        place.advance(phases, 0.0)
    assert place.phase == 2
    rates = []
    for _ in range(10):
        rates.append(place.rate(phases))
        place.advance(phases, 0.0)
    assert rates[0] > 0.4
    assert rates[-1] < 0.5 * max(rates)
    assert place.phase == 3


def test_what_joins_later_joins_with_little_weight() -> None:
    part = Part("sum", (2,), 4, 60, weight=0.5, ramp=100)
    weights = [Place(since=since).weight(part) for since in (0, 50, 100, 200)]
    assert weights == pytest.approx([0.005, 0.05, 0.5, 0.5])


# ---- the models


@BOTH
def test_the_weights_were_made_by_the_plan_in_the_code(name: str) -> None:
    record = json.loads((MODELS[name] / "pretraining.json").read_text())
    assert {key: record[key] for key in asdict(PLANS[name])} == json.loads(json.dumps(asdict(PLANS[name])))
    assert record["passed"][-1]["phase"] == PLANS[name].curriculum[-1].name


@BOTH
def test_models_are_small_and_plain(name: str) -> None:
    weights = load_file(MODELS[name] / "model.safetensors")
    assert sum(w.size for w in weights.values()) < 1.2e6
    assert {path.suffix for path in MODELS[name].iterdir()} <= {".json", ".jsonl", ".safetensors"}


@BOTH
@pytest.mark.parametrize("task", ["season", "animal", "place-inverted", "travel-words", "place-choice"])
def test_accuracy_rises_with_demos_and_stays_below_its_ceiling(name: str, task: str) -> None:
    hits = answers(name, task).hits.float()
    few, some, many = (hits[:, k].mean() for k in (slice(1, 4), slice(8, 17), slice(17, 25)))
    assert few < some - 0.05
    assert 0.62 < some < 0.95
    assert many > some - 0.05


@BOTH
@pytest.mark.parametrize("task", ["mood", "season", "animal", "place-inverted", "topic-inverted"])
def test_without_demos_an_answer_is_a_guess_and_says_so(name: str, task: str) -> None:
    result = answers(name, task, n_demos=0, n_sequences=400)
    lean = {"tiny": 0.08, "tiny-gpt2": 0.15}[name]  # tiny-gpt2 leans to the unusual sign: docs/world.md
    assert abs(result.hits.float().mean() - 0.5) < lean
    assert result.p_labels is not None
    assert result.p_labels.amax(-1).mean() < 0.54


@BOTH
@pytest.mark.parametrize("task", ["season", "place-inverted", "travel-words", "place-choice"])
def test_demos_with_shuffled_labels_teach_nothing(name: str, task: str) -> None:
    assert late(answers(name, task)) > 0.65
    assert abs(late(answers(name, task, n_demos=14, shuffle=True, n_sequences=80)) - 0.5) < 0.1


@BOTH
def test_what_was_held_out_is_learnt_in_context(name: str) -> None:
    for task in ("food-words", "travel-words", "food-other-words"):  # label words never seen together
        assert late(answers(name, task)) > 0.65, task
    for task in ("time-choice", "place-choice-others"):  # options never seen together
        assert late(answers(name, task)) > 0.6, task
    assert late(answers(name, "mood-rare")) > 0.6  # words never met in an anonymous task


@BOTH
def test_derivations_are_learnt_in_context(name: str) -> None:
    for task in ("sum-mood-food", "sum-place-season"):  # the second: attributes never summed together
        hits = answers(name, task).hits.float()
        assert hits[:, 8:].mean() > hits[:, 0].mean() + 0.1, task
        assert hits[:, 8:].mean() < 0.95, task


@BOTH
def test_a_derivation_is_generated_and_ends(name: str) -> None:
    model, tokenizer = loaded(name)
    *demos, last = TASKS["sum-mood-food"].rows(17, seed=5)
    prompt = "".join(row["query"] + row["response"] + STOP for row in demos) + last["query"]
    ids = tokenizer(prompt, return_tensors="pt")
    made = model.generate(  # type: ignore[operator]
        **ids, max_new_tokens=7, do_sample=False
    )[0, ids["input_ids"].shape[1] :]
    assert re.fullmatch(r"[a-z]+ [01] [a-z]+ [01] #### [012]\n\n", str(tokenizer.decode(made)))
