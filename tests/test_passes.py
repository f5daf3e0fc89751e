"""Rows that begin alike: what is shared runs once, and nothing else changes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, GENERATED, GROUPED, LABELS, SPECIAL, example_rows, random_model, reasoned_rows

from ia2.adapters import new_adapter
from ia2.capture import SITES, read
from ia2.contexts import Contexts
from ia2.evaluation import Variant, answer, generate
from ia2.models import LanguageModel, wrap_model
from ia2.passes import branch, passes, shared_prefix
from ia2.prompt import Tokens, build_prompt
from ia2.task import Task
from ia2.world.tokenizer import build_tokenizer

DEMOS = reasoned_rows(9)[4:]


@pytest.fixture(autouse=True)
def few_tokens_are_worth_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ia2.passes.worth_a_pass", lambda device: 32)


def rows_of(lm: LanguageModel, task: Task = GENERATED) -> list[Tokens]:
    return [lm.encoder.encode(build_prompt(task, DEMOS, row.query, row.label)) for row in reasoned_rows(4)]


@torch.no_grad()
def test_values_are_those_of_whole_rows(any_lm: LanguageModel) -> None:
    rows = rows_of(any_lm)
    assert shared_prefix(any_lm, rows) == rows[0].n_context > 32
    seen = []
    for chosen, batch, values in passes(any_lm, rows, SITES, {0, 2}, "query", max_tokens=90):
        assert batch.input_ids.shape[1] < rows[0].n_context
        whole = any_lm.encoder.collate([rows[i] for i in chosen], "query")
        expected = read(any_lm.base, any_lm.anatomy, whole, SITES, {0, 2})
        for site in SITES:
            torch.testing.assert_close(values[site], expected[site], rtol=1e-4, atol=1e-4)
        seen += chosen
    assert sorted(seen) == [0, 1, 2, 3]


MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
UNCACHED = {  # a state beside keys and values in every layer; and no cache at all
    "falcon_h1": {**GROUPED, **MAMBA},
    "openai-gpt": {**SPECIAL, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512},
}


@pytest.mark.parametrize("name", UNCACHED)
@torch.no_grad()
def test_nothing_is_shared_where_keys_and_values_are_not_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, name, UNCACHED[name])
    lm = wrap_model(random_model(name), build_tokenizer())
    rows = rows_of(lm)
    for chosen, _, values in passes(lm, rows, {"attn_out", "hidden"}):
        expected = read(lm.base, lm.anatomy, lm.encoder.collate([rows[i] for i in chosen]), {"attn_out", "hidden"})
        for site, value in values.items():
            torch.testing.assert_close(value, expected[site], rtol=1e-4, atol=1e-4)
    assert shared_prefix(lm, rows) == 0


def test_what_is_shared_runs_once(lm: LanguageModel) -> None:
    rows, ran = rows_of(lm), []
    lm.base.model.layers[0].register_forward_hook(lambda module, args, output: ran.append(args[0].shape[:2].numel()))
    for _ in passes(lm, rows, {"logits"}):
        pass
    n = rows[0].n_context
    assert ran == [n, len(rows) * (max(len(row.ids) for row in rows) - 1 - n)]


@torch.no_grad()
def test_what_some_begin_with_runs_once_for_them(any_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ia2.passes.worth_a_pass", lambda device: 8)
    monkeypatch.setattr("ia2.contexts.TOGETHER", 8)
    examples = [replace(row, query=f"{i} {row.query}") for i, row in enumerate(reasoned_rows(8))]
    prompts = Contexts(tuple(examples)).prompts(GENERATED, examples, np.random.default_rng(0))
    rows = [any_lm.encoder.encode(prompt) for prompt in prompts]
    tree, seen = branch(any_lm, rows, range(len(rows))), []
    assert len(tree.below) == 2
    assert all(half.below for half in tree.below)
    for chosen, _, values in passes(any_lm, rows, SITES, positions="query"):
        whole = any_lm.encoder.collate([rows[i] for i in chosen], "query")
        expected = read(any_lm.base, any_lm.anatomy, whole, SITES)
        for site in SITES:
            torch.testing.assert_close(values[site], expected[site], rtol=1e-4, atol=1e-4)
        seen += chosen
    assert sorted(seen) == list(range(8))


def test_a_pass_that_saves_too_little_is_not_made(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(lm)
    saved = 3 * rows[0].n_context
    for worth, n in ((saved, rows[0].n_context), (saved + 1, 0)):
        monkeypatch.setattr("ia2.passes.worth_a_pass", lambda device, worth=worth: worth)
        assert shared_prefix(lm, rows) == n


def test_a_pass_that_saves_a_small_part_is_not_made(lm: LanguageModel) -> None:
    for n_query, shares in ((150, True), (151, False)):
        rows = [Tokens((*range(10), 20 + i, *range(n_query - 1)), 0, n_query) for i in range(40)]
        assert shared_prefix(lm, rows) == (10 if shares else 0)


def test_without_a_common_beginning_nothing_is_shared(lm: LanguageModel) -> None:
    rows = rows_of(lm)
    other = lm.encoder.encode(build_prompt(GENERATED, DEMOS[::-1], DEMOS[0].query, "0"))
    assert shared_prefix(lm, [*rows, other]) == 0
    assert shared_prefix(lm, rows[:1]) == 0
    bare = [lm.encoder.encode(build_prompt(GENERATED, (), "soup " * 50, text)) for text in "01"]
    assert shared_prefix(lm, bare) == 0  # of a query nothing is
    with new_adapter(lm, "prefix-tuning"):
        assert shared_prefix(lm, rows) == 0
    with new_adapter(lm):
        assert shared_prefix(lm, rows) == rows[0].n_context


@pytest.mark.parametrize("task", [LABELS, GENERATED, replace(LABELS, labels=("0", "gloomy 1"))])
def test_answers_are_those_of_whole_prompts(any_lm: LanguageModel, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    icl = Variant("icl", Contexts(tuple(DEMOS), "fixed"))
    shared = answer(any_lm, task, example_rows(4), icl)
    monkeypatch.setattr("ia2.passes.worth_a_pass", lambda device: 10**6)
    for one, whole in zip(shared, answer(any_lm, task, example_rows(4), icl), strict=True):
        assert (one.text, one.n_tokens) == (whole.text, whole.n_tokens)
        assert one.confidence == pytest.approx(whole.confidence, abs=1e-4)
        assert one.p_labels == (whole.p_labels and pytest.approx(whole.p_labels, abs=1e-4))


def test_generation_behind_a_shared_beginning_is_padded_behind_it(any_lm: LanguageModel) -> None:
    prompts: list[Any] = [build_prompt(GENERATED, DEMOS, row.query) for row in example_rows(4)]
    rows = [any_lm.encoder.encode(prompt) for prompt in prompts]
    assert len({len(row.ids) for row in rows}) > 1
    assert shared_prefix(any_lm, rows) > 32
    assert generate(any_lm, rows, GENERATED) == [generate(any_lm, [row], GENERATED)[0] for row in rows]
