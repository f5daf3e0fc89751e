"""Capture against a naive one: a row at a time, unpadded, hooks on whole attention modules by name."""

from typing import Any

import pytest
import torch
from conftest import LABELS, example_rows, random_model, reasoned_rows
from torch import Tensor
from transformers import BertConfig, BertLMHeadModel

from ia2.capture import paths, read
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.models import LanguageModel, wrap_model
from ia2.passes import batches
from ia2.prompt import Tokens, build_prompt
from ia2.task import Task
from ia2.world.tokenizer import build_tokenizer

ATTENTION = {
    "LlamaForCausalLM": "model.layers.{}.self_attn",
    "Qwen3ForCausalLM": "model.layers.{}.self_attn",
    "GPT2LMHeadModel": "transformer.h.{}.attn",
    "GPTNeoXForCausalLM": "gpt_neox.layers.{}.attention",
    "OPTForCausalLM": "model.decoder.layers.{}.self_attn",
}


@torch.no_grad()
def naive_capture(lm: LanguageModel, row: Tokens) -> tuple[Tensor, Tensor]:
    """Attention outputs (R, L, D) and logits (R, V) of one unpadded row, from full tensors, positions by arithmetic."""
    kept: dict[int, Tensor] = {}
    handles = []
    for layer in range(lm.base.config.num_hidden_layers):

        def keep(module: Any, args: Any, output: Any, layer: int = layer) -> None:
            kept[layer] = output[0][0]

        module = lm.base.get_submodule(ATTENTION[type(lm.base).__name__].format(layer))
        handles.append(module.register_forward_hook(keep))
    logits = lm.base(torch.tensor([row.ids])).logits[0]
    for handle in handles:
        handle.remove()
    positions = [len(row.ids) - row.n_response + r - 1 for r in range(row.n_response)]
    acts = torch.stack([torch.stack([kept[layer][t] for layer in sorted(kept)]) for t in positions])
    return acts, logits[positions]


def encoded(lm: LanguageModel, task: Task, rows: list[Example], demos: list[Example]) -> list[Tokens]:
    return [lm.encoder.encode(build_prompt(task, demos, row.query, row.label)) for row in rows]


@pytest.mark.parametrize("reasoned", [False, True])
def test_capture_equals_naive_capture(any_lm: LanguageModel, reasoned: bool) -> None:
    rows = (reasoned_rows if reasoned else example_rows)(5)
    prompts = encoded(any_lm, LABELS, rows[1:], rows[:1])
    batch = any_lm.encoder.collate(prompts)
    with torch.no_grad():
        values = read(any_lm.base, any_lm.anatomy, batch, ("attn_out", "logits"))
    naive = [naive_capture(any_lm, row) for row in prompts]
    acts, logits = (torch.cat(parts) for parts in zip(*naive, strict=True))
    torch.testing.assert_close(values["attn_out"], acts, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values["logits"], logits, rtol=1e-4, atol=1e-5)


def test_a_shift_by_one_or_a_dropped_layer_would_show(any_lm: LanguageModel) -> None:
    row = encoded(any_lm, LABELS, reasoned_rows(3)[2:], [])[0]
    acts, _ = naive_capture(any_lm, row)
    shifted, _ = naive_capture(any_lm, Tokens(row.ids[:-1], row.n_response, 0))
    assert (acts - shifted).abs().max() > 1e-2
    assert (acts[:, 0] - acts[:, 1]).abs().max() > 1e-2


def test_neurons_are_what_the_last_projection_of_the_feed_forward_block_reads(any_lm: LanguageModel) -> None:
    batch = any_lm.encoder.collate(encoded(any_lm, LABELS, reasoned_rows(4), []))
    values = read(any_lm.base, any_lm.anatomy, batch, ("neurons", "mlp_out"))
    assert values["neurons"].shape[2] in (48, 128)
    for layer, path in enumerate(any_lm.anatomy.mlp_out):
        out = any_lm.base.get_submodule(path)(values["neurons"][:, layer])
        torch.testing.assert_close(out, values["mlp_out"][:, layer], rtol=1e-4, atol=1e-5)


def test_a_block_of_experts_has_no_neurons_but_the_other_sites() -> None:
    anatomy = wrap_model(random_model("mixtral"), build_tokenizer()).anatomy
    with pytest.raises(IA2Error, match=r"model\.layers\.0\.mlp is a block of experts"):
        paths(anatomy, "neurons")
    assert len(paths(anatomy, "mlp_out")) == len(paths(anatomy, "attn_out")) == 3


def test_batch_size_padding_and_order_change_nothing(any_lm: LanguageModel) -> None:
    rows = encoded(any_lm, LABELS, example_rows(6), [])
    together = read(any_lm.base, any_lm.anatomy, any_lm.encoder.collate(rows), ("attn_out",))["attn_out"]
    alone = [read(any_lm.base, any_lm.anatomy, any_lm.encoder.collate([r]), ("attn_out",))["attn_out"] for r in rows]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    backwards = read(any_lm.base, any_lm.anatomy, any_lm.encoder.collate(rows[::-1]), ("attn_out",))["attn_out"]
    torch.testing.assert_close(together, backwards.flip(0), rtol=1e-4, atol=1e-5)


def test_hooks_are_removed_also_after_an_error(lm: LanguageModel) -> None:
    def n_hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.base.modules())

    before = n_hooks()
    batch = lm.encoder.collate(encoded(lm, LABELS, example_rows(2), []))
    read(lm.base, lm.anatomy, batch, ("attn_out", "logits"))
    assert n_hooks() == before
    bad = lm.encoder.collate([Tokens((0, 10**6, 0), 1, 1)])
    with pytest.raises(IndexError):
        read(lm.base, lm.anatomy, bad, ("attn_out",))
    assert n_hooks() == before


def test_nothing_is_computed_that_is_not_read(lm: LanguageModel) -> None:
    heads: list[int] = []
    blocks: list[str] = []
    lm.base.lm_head.register_forward_hook(lambda module, args, output: heads.append(output[..., 0].numel()))
    for i, layer in enumerate(lm.base.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, i=i: blocks.append(f"attention {i}"))
        layer.mlp.register_forward_hook(lambda *_, i=i: blocks.append(f"mlp {i}"))
    batch = lm.encoder.collate(encoded(lm, LABELS, example_rows(4), []))
    read(lm.base, lm.anatomy, batch, ("logits",))
    assert heads == [4]
    blocks.clear()
    read(lm.base, lm.anatomy, batch, ("attn_out",))
    assert blocks == ["attention 0", "mlp 0", "attention 1", "mlp 1"]  # it ends within the third attention block
    blocks.clear()
    read(lm.base, lm.anatomy, batch, ("attn_out",), layers={0})
    assert blocks == []
    assert heads == [4]


def test_layers_are_found_in_every_architecture(any_lm: LanguageModel) -> None:
    assert len(any_lm.anatomy.attn_out) == 3
    attention = ATTENTION[type(any_lm.base).__name__]
    for layer, path in enumerate(any_lm.anatomy.attn_out):
        assert path.startswith(attention.format(layer))
        assert any_lm.base.get_submodule(path).weight.shape[0] in (32, 64)
    targets = any_lm.anatomy.default_targets
    matched = [n for n, _ in any_lm.base.named_modules() if any(f".{n}".endswith(f".{t}") for t in targets)]
    assert matched
    assert all(".attn" in n or "attention" in n or "self_attn" in n for n in matched)
    assert not any(n.rsplit(".", 1)[-1].startswith("v") for n in matched)


def test_missing_layers_are_an_error() -> None:
    model = random_model("llama")
    del model.model.layers[-1]
    with pytest.raises(IA2Error, match="found 0 lists of 3 layers"):
        wrap_model(model, build_tokenizer())


def test_an_encoder_is_refused() -> None:
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        is_decoder=False,
    )
    with pytest.raises(IA2Error, match="decoder-only"):
        wrap_model(BertLMHeadModel(config), build_tokenizer())


def test_batches_hold_every_row_once_within_the_budget() -> None:
    rows = [Tokens(tuple(range(n)), 1, 0) for n in (3, 50, 7, 200, 11, 2, 49)]
    chosen = list(batches(rows, max_tokens=100))
    assert sorted(i for part in chosen for i in part) == list(range(len(rows)))
    assert all(len(part) == 1 or max(len(rows[i].ids) for i in part) * len(part) <= 100 for part in chosen)
