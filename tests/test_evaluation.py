"""Scoring against naive scoring: one row, unpadded, no cache."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GENERATED, LABELS, example_rows, reasoned_rows
from torch.nn.functional import cosine_similarity

from ia2.adapters import loaded_adapters, new_adapter, save_adapter
from ia2.capture import read
from ia2.contexts import Contexts
from ia2.errors import IA2Error
from ia2.evaluation import Prediction, Variant, answer, evaluate, generate, label_logps
from ia2.metrics import ece
from ia2.models import LanguageModel
from ia2.prompt import build_prompt
from ia2.summary import difference, summarise
from ia2.task import Task

ROWS = example_rows(6)
DEMOS = example_rows(9)[6:]
ICL = Variant("icl", Contexts(tuple(DEMOS), "fixed"))


@torch.no_grad()
def naive_label_logp(lm: LanguageModel, ids: list[int], label: list[int]) -> float:
    total = 0.0
    for token in label:
        total += lm.base(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token].item()
        ids = [*ids, token]
    return total


@pytest.mark.parametrize("labels", [("0", "1"), ("apple 0", "apple 1 Friday", "banana")])
def test_label_scores_are_the_sum_over_all_tokens_of_each_label(any_lm: LanguageModel, labels: tuple[str, ...]) -> None:
    prompts = [build_prompt(LABELS, DEMOS, row.query) for row in ROWS]
    scores = label_logps(any_lm, labels, prompts)
    for i, prompt in enumerate(prompts):
        ids = list(any_lm.encoder.encode(prompt).ids)
        for c, label in enumerate(labels):
            assert scores[i, c].item() == pytest.approx(
                naive_label_logp(any_lm, ids, any_lm.encoder.piece(label)), abs=2e-4
            )


def test_labels_that_tokenise_alike_are_an_error(lm: LanguageModel) -> None:
    with pytest.raises(IA2Error, match="not told apart"):
        label_logps(lm, ("unknownword", "anotherone"), [build_prompt(LABELS, (), "Text:soup\nLabel:")])


@torch.no_grad()
def naive_generate(lm: LanguageModel, ids: list[int], n: int) -> list[int]:
    new: list[int] = []
    while len(new) < n:
        new.append(int(lm.base(torch.tensor([ids + new])).logits[0, -1].argmax()))
        if "\n\n" in lm.encoder.tokenizer.decode(new) or new[-1] == lm.encoder.tokenizer.eos_token_id:
            break
    return new


@torch.no_grad()
def says(lm: LanguageModel, query: str, answer: str) -> None:
    """Make a model that says nothing but `answer` and a blank line behind the query: each token from the one before."""
    for layer in lm.base.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    ids = [lm.encoder.piece(query)[-1], *lm.encoder.piece(answer), *lm.encoder.piece("\n\n")]
    lm.base.lm_head.weight.zero_()
    for before, after in itertools.pairwise(ids):
        embedding = lm.base.get_input_embeddings().weight[before]
        lm.base.lm_head.weight[after] += 10 * embedding / embedding.norm()


@pytest.mark.parametrize("said", ["1", "10"])
def test_a_label_that_begins_another_is_not_preferred(lm: LanguageModel, said: str) -> None:
    says(lm, "Text:soup\nLabel:", said)
    scores = label_logps(lm, ("1", "10"), [build_prompt(LABELS, (), "Text:soup\nLabel:")])[0]
    assert scores[("1", "10").index(said)] > scores[1 - ("1", "10").index(said)] + 1


def test_batched_generation_equals_one_row_at_a_time_without_cache(any_lm: LanguageModel) -> None:
    rows = [any_lm.encoder.encode(build_prompt(GENERATED, (), row.query)) for row in ROWS]
    together = generate(any_lm, rows, GENERATED)
    assert together == [naive_generate(any_lm, list(row.ids), 8) for row in rows]


def test_a_row_ends_at_each_token_that_ends_a_text_for_the_model(lm: LanguageModel) -> None:
    says(lm, "Text:soup\nLabel:", "apple banana 0 1")
    end = lm.encoder.piece("banana")
    lm.base.generation_config.eos_token_id = [lm.encoder.tokenizer.eos_token_id, *end]
    queries = ["Text:soup\nLabel:", "Text:soup\nLabel: apple"]
    rows = [lm.encoder.encode(build_prompt(GENERATED, (), query)) for query in queries]
    assert generate(lm, rows, GENERATED) == [lm.encoder.piece("apple banana"), end]


def test_generated_answers_carry_the_mean_probability_of_their_tokens(lm: LanguageModel) -> None:
    given = answer(lm, GENERATED, ROWS[:1], Variant("zero-shot"))[0]
    ids = list(lm.encoder.encode(build_prompt(GENERATED, (), ROWS[0].query)).ids)
    p = []
    for token in naive_generate(lm, ids, 8):
        p.append(lm.base(torch.tensor([ids])).logits[0, -1].softmax(-1)[token].item())
        ids.append(token)
    assert given.confidence == pytest.approx(sum(p) / len(p), rel=1e-4)


def test_predictions_of_a_label_task(lm: LanguageModel) -> None:
    found = evaluate(lm, LABELS, ROWS, [Variant("zero-shot"), ICL], ICL)
    assert [p.variant for p in found] == ["zero-shot"] * 6 + ["icl"] * 6
    for p in found:
        assert p.p_labels is not None
        assert sum(p.p_labels.values()) == pytest.approx(1.0)
        assert p.confidence == pytest.approx(max(p.p_labels.values()))
        assert p.correct == (max(p.p_labels, key=lambda label: p.p_labels[label]) == p.response)  # type: ignore[index]
        assert p.nll == pytest.approx(-math.log(p.p_labels[p.response]), rel=1e-5)
        assert p.brier == pytest.approx(sum((q - (label == p.response)) ** 2 for label, q in p.p_labels.items()))
    icl_ids = len(lm.encoder.encode(build_prompt(LABELS, DEMOS, ROWS[0].query)).ids)
    assert found[6].n_tokens == icl_ids > 2 * found[0].n_tokens


def test_labels_of_one_token_are_read_in_one_pass(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ia2.passes.worth_a_pass", lambda device: 10**6)
    variants, n_passes = [Variant("zero-shot"), ICL], 0

    def count(*_: Any) -> None:
        nonlocal n_passes
        n_passes += 1

    expected = [answer(lm, LABELS, ROWS, variant) for variant in variants]
    hook = lm.base.register_forward_hook(count)
    found = evaluate(lm, LABELS, ROWS, variants, ICL)
    hook.remove()
    assert n_passes == 2
    for p, of in zip(found, [*expected[0], *expected[1]], strict=True):
        assert (p.answer, p.n_tokens) == (of.text, of.n_tokens)
        assert p.p_labels == pytest.approx(of.p_labels, rel=1e-5)


def test_similarity_is_to_icl_on_the_same_gold_tokens(lm: LanguageModel) -> None:
    task = replace(GENERATED, max_new_tokens=2)
    rows = reasoned_rows(3)
    found = evaluate(lm, task, rows, [Variant("zero-shot"), ICL], ICL)
    assert all(s == pytest.approx(1.0, abs=1e-5) for p in found[3:] for s in p.similarity)
    for row, p in zip(rows, found[:3], strict=True):
        acts = []
        for demos in ([], DEMOS):
            batch = lm.encoder.collate([lm.encoder.encode(build_prompt(task, demos, row.query, row.label))])
            acts.append(read(lm.base, lm.anatomy, batch, ("attn_out",))["attn_out"])
        by_hand = [
            sum(cosine_similarity(acts[0][r, layer], acts[1][r, layer], dim=0).item() for r in range(len(acts[0])))
            / len(acts[0])
            for layer in range(3)
        ]
        assert p.similarity == pytest.approx(by_hand, abs=1e-4)
        assert max(p.similarity) < 0.999


def test_ties_count_as_wrong(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = lm.base.lm_head.weight.detach().clone()
    weight[lm.encoder.piece("1")] = weight[lm.encoder.piece("0")]
    monkeypatch.setattr(lm.base.lm_head, "weight", torch.nn.Parameter(weight))
    found = evaluate(lm, LABELS, ROWS, [Variant("zero-shot")], ICL)
    assert not any(p.correct or p.answer for p in found)
    assert all(p.confidence == pytest.approx(0.5) for p in found)


@torch.no_grad()
def test_labels_do_not_tie_for_want_of_precision(lm: LanguageModel) -> None:
    lm.base.to(torch.bfloat16)
    zero, one = (lm.encoder.piece(label)[0] for label in ("0", "1"))
    head = lm.base.lm_head.weight
    head[one] = head[zero]
    head[one, 0] += 0.02  # so alike that their logits, of 8 bits, are mostly the same number
    for row, p in zip(ROWS, evaluate(lm, LABELS, ROWS, [Variant("zero-shot")], ICL), strict=True):
        ids = torch.tensor([lm.encoder.encode(build_prompt(LABELS, (), row.query)).ids])
        logits = head[[zero, one]].float() @ lm.base.model(ids).last_hidden_state[0, -1].float()
        assert list((p.p_labels or {}).values()) == pytest.approx(logits.softmax(-1).tolist(), abs=1e-4)
        assert not p.unparsable


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers.")
def test_an_adapter_of_the_head_is_scored(lm: LanguageModel, tmp_path: Path) -> None:
    lm.base.to(torch.bfloat16)
    with new_adapter(lm, "lora", {"target_modules": ["lm_head"]}) as model:
        torch.nn.init.normal_(model.base_model.model.lm_head.lora_B["default"].weight)
        save_adapter(model, tmp_path / "head", {})
    with loaded_adapters(lm, {"head": tmp_path / "head"}):
        bare, head = (answer(lm, LABELS, ROWS, Variant("", adapter=name)) for name in (None, "head"))
    assert all(abs(a.confidence - b.confidence) > 1e-3 for a, b in zip(bare, head, strict=True))


def test_unparsable_answers_count_as_wrong(lm: LanguageModel) -> None:
    found = evaluate(lm, GENERATED, reasoned_rows(4), [Variant("zero-shot")], ICL)
    assert len(found) == 4
    assert not any(p.correct for p in found)


def test_adapters_are_switched(lm: LanguageModel, tmp_path: Path) -> None:
    for seed in (0, 1):
        with new_adapter(lm, options={"r": 4, "lora_alpha": 64}, seed=seed) as model:
            torch.manual_seed(seed)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter)
            save_adapter(model, tmp_path / str(seed), {})
    adapters = {"one": tmp_path / "0", "two": tmp_path / "1"}
    base = Variant("base")
    alone = {}
    for name, folder in adapters.items():
        with loaded_adapters(lm, {name: folder}):
            alone[name] = evaluate(lm, LABELS, ROWS, [Variant(name, adapter=name)], base)
    with loaded_adapters(lm, adapters):
        together = evaluate(
            lm, LABELS, ROWS, [Variant("one", adapter="one"), base, Variant("two", adapter="two")], base
        )
    numbers = [[p.nll for p in rows] for rows in (together[:6], together[6:12], together[12:])]
    assert numbers[0] == [p.nll for p in alone["one"]]
    assert numbers[2] == [p.nll for p in alone["two"]]
    assert numbers[1] == [p.nll for p in evaluate(lm, LABELS, ROWS, [base], base)]
    assert numbers[0] != numbers[1] != numbers[2] != numbers[0]


def test_an_unknown_test_label_is_an_error(lm: LanguageModel) -> None:
    with pytest.raises(IA2Error, match="label '1' is not among the training labels: 0, 2"):
        evaluate(lm, Task(("0", "2")), ROWS, [ICL], ICL)


def predictions(hits: list[int], confidence: float) -> list[Prediction]:
    row = {"answer": "", "greedy_correct": True, "p_labels": None, "similarity": [1.0], "n_tokens": 1, "seconds": 1.0}
    return [
        Prediction(
            "v",
            str(i),
            "",
            correct=bool(hit),
            score=hit,
            unparsable=True,
            confidence=confidence,
            p_answer=confidence,
            nll=1.0,
            brier=0.5,
            **row,
        )  # type: ignore[arg-type]
        for i, hit in enumerate(hits)
    ]


def test_summary_and_paired_difference() -> None:
    a, b = predictions([1] * 80 + [0] * 20, 0.8), predictions([1] * 60 + [0] * 40, 0.9)
    summary = summarise(a)
    assert summary["accuracy"]["value"] == pytest.approx(0.8)
    assert summary["ece"]["value"] == pytest.approx(0.0, abs=1e-9)
    gap = difference(a, b)
    assert gap["accuracy"]["value"] == pytest.approx(0.2)
    assert 0.1 < gap["accuracy"]["low"] < 0.2 < gap["accuracy"]["high"] < 0.3
    assert gap["ece"]["value"] == pytest.approx(
        float(ece(*arrays(a))) - float(ece(*arrays(b)))
    )  # fmt: skip
    with pytest.raises(ValueError, match="same rows"):
        difference(a, b[:-1])


def arrays(rows: list[Prediction]):  # type: ignore[no-untyped-def]
    import numpy as np

    return np.array([p.confidence for p in rows]), np.array([float(p.correct) for p in rows])


def test_labels_of_one_token_of_which_one_begins_another(lm: LanguageModel) -> None:
    task = Task(("snow", "snowman"))
    rows = [replace(row, response="snowman") for row in ROWS]
    p_NC = label_logps(lm, ("snow", "snowman"), [build_prompt(task, (), row.query) for row in rows]).softmax(-1)
    found = evaluate(lm, task, rows, [Variant("zero-shot")], Variant("zero-shot"))
    assert [(p.p_labels or {})["snow"] for p in found] == pytest.approx(p_NC[:, 0].tolist(), abs=1e-5)


def test_where_a_label_ends_counts_among_its_tokens(lm: LanguageModel) -> None:
    prompts = [build_prompt(Task(("0", "0 soup"), separator="\n\n\n"), (), row.query) for row in ROWS]
    n_end = len(lm.encoder.piece("\n\n\n"))
    assert n_end > 1
    summed, normalised = (label_logps(lm, ("0", "0 soup"), prompts, of) for of in (False, True))
    torch.testing.assert_close(normalised * torch.tensor([1 + n_end, 2 + n_end]), summed)


def test_longer_labels_are_normalised_if_asked_for(any_lm: LanguageModel) -> None:
    labels = ("0", "gloomy 1 soup")
    prompts = [build_prompt(LABELS, (), row.query) for row in ROWS]
    summed, normalised = (label_logps(any_lm, labels, prompts, of) for of in (False, True))
    torch.testing.assert_close(normalised * torch.tensor([1, 3]), summed)
    task = Task(labels, length_normalised=True)
    for given, logp_C in zip(answer(any_lm, task, ROWS, Variant("")), normalised.softmax(-1), strict=True):
        assert list((given.p_labels or {}).values()) == pytest.approx(logp_C.tolist(), abs=1e-5)


def test_the_probability_of_a_generated_answer_is_the_product_of_its_tokens(lm: LanguageModel) -> None:
    given = answer(lm, GENERATED, ROWS[:1], Variant("zero-shot"))[0]
    ids = list(lm.encoder.encode(build_prompt(GENERATED, (), ROWS[0].query)).ids)
    logp = 0.0
    for token in naive_generate(lm, ids, 8):
        logp += lm.base(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
        ids.append(token)
    assert math.log(given.p_answer) == pytest.approx(logp, rel=1e-4)


@pytest.mark.parametrize("task", [Task(("0", "apple banana")), GENERATED], ids=["labels", "generated"])
def test_where_demos_are_dropped_every_answer_has_room(
    lm: LanguageModel, task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demos = [replace(row, response=("0", "apple banana")[i % 2]) for i, row in enumerate(example_rows(9))]
    queries = [replace(row, response=None) for row in example_rows(12)[9:]]
    whole = Contexts(tuple(demos), "fixed")
    n_tokens = {len(lm.encoder.encode(whole.prompt(task, row, None, np.random.default_rng(0))).ids) for row in queries}
    for window in range(min(n_tokens) - 4, max(n_tokens) + 10):
        monkeypatch.setattr(lm.encoder, "max_length", window)
        answers = answer(lm, task, queries, Variant("icl", replace(whole, fits=lm.encoder.fits)))
        assert len(answers) == len(queries)
    assert "cut off" not in capsys.readouterr().err
    if not task.labels:
        monkeypatch.setattr(lm.encoder, "max_length", max(n_tokens) + 3)
        answer(lm, task, queries, Variant("icl", whole))
        assert (
            f"{len(queries)} of {len(queries)} prompts leave room for less than 8 new tokens" in capsys.readouterr().err
        )
