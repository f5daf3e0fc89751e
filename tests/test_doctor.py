"""A look before training: what is shown is what is there, and what is wrong is said."""

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GENERATED, example_rows, random_model, reasoned_rows
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

from ia2.adapters import new_adapter
from ia2.capture import Selection, Site, read
from ia2.config import make_config
from ia2.contexts import Contexts, Order
from ia2.data import Example
from ia2.doctor import examine, lines
from ia2.estimate import estimate, work
from ia2.models import LanguageModel, load_model, wrap_model
from ia2.passes import passes
from ia2.prompt import Tokens, build_prompt
from ia2.run import Data, Run
from ia2.targets import collect
from ia2.world import TASKS
from ia2.world.tokenizer import build_tokenizer

ROWS = example_rows(12)


def run_of(folder: Path, rows: list[Example] = ROWS, **options: Any) -> Run:
    config = make_config({"model": "tiny", "labels": ("0", "1"), **options})
    return Run.create(folder / "run", config, Data(rows[:8], rows[8:]))


def test_a_sound_setting(lm: LanguageModel, tmp_path: Path) -> None:
    run = run_of(tmp_path)
    report = examine(run, lm)
    assert report.errors == []
    assert report.layers[0] == "3 layers, 3 of them with self-attention"
    assert "attn_out: model.layers.0.self_attn.o_proj to model.layers.2.self_attn.o_proj" in report.layers
    with new_adapter(lm) as model:
        n = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{n:,} trainable parameters" in report.adapter
    marked = [(text, token) for text, token in report.prompt if token is not None]
    assert marked == [("\nLabel:", "0")]
    assert not (tmp_path / "run").exists()
    text = "\n".join(lines(report))
    assert "[\nLabel:]->'0'" in text
    assert ROWS[0].query.removesuffix("\nLabel:").removeprefix("Text:") in text
    assert "ready to train" in text


@pytest.mark.parametrize("sites", [("attn_out",), ("attn_out", "logits"), ("head_out", "hidden"), ("neurons",)])
def test_the_size_of_the_targets_is_exact(sites: tuple[Site, ...], lm: LanguageModel, tmp_path: Path) -> None:
    selection = Selection(frozenset(sites), frozenset({0, 2}))
    prompts = [build_prompt(run_of(tmp_path).task(), ROWS[:2], row.query, row.label) for row in ROWS[2:]]
    rows = [lm.encoder.encode(prompt) for prompt in prompts]
    collect(lm, prompts, selection, tmp_path / "targets")
    (path,) = (tmp_path / "targets").glob("*/*.safetensors")
    size = sum(tensor.numel() * tensor.element_size() for tensor in load_file(path).values())
    assert estimate(lm, rows, rows, selection, 0, 4).targets == size


HEADS = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
WIDE: dict[str, dict[str, Any]] = {
    "llama": HEADS | {"num_key_value_heads": 1, "intermediate_size": 512},
    "qwen3": HEADS | {"num_key_value_heads": 2, "intermediate_size": 384, "head_dim": 32},
    "gpt2": {"n_embd": 128, "n_layer": 4, "n_head": 4},
    "gpt_neox": HEADS | {"intermediate_size": 512},
    "opt": HEADS | {"ffn_dim": 512, "word_embed_proj_dim": 128},
}


@pytest.mark.parametrize("kind", WIDE)
def test_the_memory_of_a_step_is_what_autograd_keeps(kind: str) -> None:
    """Within a fifth."""
    config = AutoConfig.for_model(kind, vocab_size=400, bos_token_id=1, eos_token_id=2, pad_token_id=0, **WIDE[kind])
    lm = wrap_model(AutoModelForCausalLM.from_config(config), build_tokenizer())
    rows = [Tokens((5,) * 100, 1, 99)] * 4
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with new_adapter(lm) as model, saved_tensors_hooks(keep, lambda tensor: tensor):
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        read(model, lm.anatomy, lm.encoder.collate(rows), {"attn_out", "logits"})
    measured = sum(storage.nbytes() for place, storage in kept.items() if place not in weights)
    needs = estimate(lm, rows, rows, Selection(frozenset()), 0, 4)
    assert needs.training - needs.weights == pytest.approx(measured, rel=0.2)


def run_task() -> Any:
    return Run(Path(), make_config({"model": "tiny", "labels": ("0", "1")}), Data(())).task()


def test_what_makes_training_impossible_is_listed_whole(lm: LanguageModel, tmp_path: Path) -> None:
    long = [replace(row, query=f"Text:{'soup ' * 80}{i}\nLabel:") for i, row in enumerate(ROWS)]
    report = examine(run_of(tmp_path, long, adapter_options={"target_modules": ["nowhere"]}), lm)
    assert len(report.errors) == len(ROWS) + 1
    assert "row 1: a prompt of" in report.errors[0]
    assert "exceeds the model's window of 512" in report.errors[0]
    assert "cannot take the adapter 'lora'" in report.errors[-1]
    assert "training is impossible as it stands" in list(lines(report))


def test_words_that_the_model_does_not_know(
    lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, [replace(row, query=f"Xyz xyz:{row.query}") for row in ROWS])
    (warning,) = (text for text in examine(run, lm).warnings if "unknown" in text)
    texts = [text for row in (*run.data.train, *run.data.dev) for text in (row.query, row.label)]
    ids = [i for text in texts for i in lm.encoder.piece(text)]
    share = [lm.encoder.tokenizer.decode([i]) for i in ids].count("<unk>") / len(ids)
    assert warning.startswith(f"{share:.0%} of the tokens of queries and responses are unknown to this model")
    run.begin(lm)
    assert warning in capsys.readouterr().err


def test_labels_that_the_model_cannot_tell_apart_are_an_error_beside_the_prompt(
    lm: LanguageModel, tmp_path: Path
) -> None:
    run = run_of(tmp_path, [replace(row, response="xy"[i % 2]) for i, row in enumerate(ROWS)], labels=("x", "y"))
    report = examine(run, lm)
    (error,) = report.errors
    assert error.startswith("the labels 'x', 'y' are not told apart by this model's tokenizer")
    assert report.prompt


def test_what_usually_goes_wrong_is_warned_of(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.padding_side = "left"
    lm = wrap_model(random_model("llama").to(torch.float16), tokenizer)
    labels = ("soup", "soup soup")
    rows = [replace(row, response=labels[i == 0]) for i, row in enumerate(ROWS)]
    run = run_of(tmp_path, rows, labels=labels, n_demos=0)
    found = "\n".join(examine(replace(run, data=Data(rows[:8])), lm).warnings)
    for text in (
        "pads on the left",
        "float16 on a CPU",
        "0 development rows for 8",
        "share their first token",
        "the label 'soup' begins 'soup soup'",
        "has 1 of 8 training rows",
        "no better for its context",
        "does not say soup, soup soup",
    ):
        assert text in found


def test_a_model_that_says_its_labels_is_not_warned_of(tmp_path: Path) -> None:
    lm = load_model("tiny", device="cpu")
    rows = [Example(**row) for row in TASKS["place-inverted"].rows(12, 0)]
    report = examine(run_of(tmp_path, rows), lm)
    assert report.warnings == []
    assert report.scores["with"][0] < report.scores["without"][0]


@pytest.mark.parametrize("order", ["random", "fixed"])
def test_the_work_of_passes_is_what_the_model_is_given(
    order: Order, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ia2.passes.worth_a_pass", lambda device: 8)
    monkeypatch.setattr("ia2.contexts.TOGETHER", 8)
    examples, given = reasoned_rows(12), []
    queries = examples[:8] if order == "random" else examples[8:]
    prompts = Contexts(tuple(examples[:8]), order).prompts(GENERATED, queries, np.random.default_rng(0))
    rows = [lm.encoder.encode(prompt) for prompt in prompts]

    def seen(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        n_before = kwargs["attention_mask"].shape[1] - kwargs["input_ids"].shape[1]
        given.append((kwargs["input_ids"].numel(), int(kwargs["attention_mask"][:, n_before:].sum())))

    hook = lm.base.register_forward_pre_hook(seen, with_kwargs=True)
    deque(passes(lm, rows, {"attn_out"}))
    hook.remove()
    found = work(lm, rows)
    with_padding, computed = (sum(column) for column in zip(*given, strict=True))
    assert (found.n_computed, found.n_padding) == (computed, with_padding - computed)
    assert found.n_computed < found.n_tokens == sum(len(row.ids) - 1 for row in rows)
    assert found.n_at_once == max(n for n, _ in given)
    assert (found.n_padding > 0) == (order == "fixed")  # of random orders each row ends alone
