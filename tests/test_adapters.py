"""Every adapter: it learns, its aligned positions are the right ones, and what it leaves behind is plain."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GENERATED, LABELS, example_rows, random_model, reasoned_rows, teacher_prompts
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from ia2.adapters import ADAPTERS, loaded_adapters, new_adapter, save_adapter, using
from ia2.capture import SITES, Selection, read
from ia2.errors import IA2Error
from ia2.evaluation import Variant, answer, generate
from ia2.jobs import Rows, TrainingSettings
from ia2.methods import methods
from ia2.models import LanguageModel, wrap_model
from ia2.prompt import build_prompt
from ia2.targets import collect
from ia2.training import train_stage
from ia2.world.tokenizer import build_tokenizer

ROWS = example_rows(5)
CONTEXT = build_prompt(LABELS, ROWS[1:], ROWS[0].query)
OTHERS = ("lokr", "hra", "fourierft", "vblora", "miss")  # by PEFT's own names
ALL = pytest.mark.parametrize("name", [*ADAPTERS, *OTHERS])


SMALL = {
    "oft": {"oft_block_size": 8},
    "vblora": {"vector_length": 16},
    "fourierft": {"n_frequency": 100},
    "miss": {"r": 4},
}  # options that make an adapter fit a model of width 32


@ALL
@pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm", "ignore:Detected that the base layer has no bias")
def test_an_adapter_learns_is_saved_and_leaves_the_base_as_it_was(lm: LanguageModel, name: str, tmp_path: Path) -> None:
    prompts = teacher_prompts(LABELS, ROWS, ROWS)
    bare = [lm.encoder.encode(build_prompt(LABELS, (), e.query, e.label)) for e in ROWS]
    rows = Rows(bare, collect(lm, prompts, Selection(frozenset(("attn_out",)))))
    batch = lm.encoder.collate(bare)
    with torch.no_grad():
        before = read(lm.base, lm.anatomy, batch, SITES)
    settings = TrainingSettings(min(ADAPTERS[name].learning_rate[-1:] if name in ADAPTERS else (1e-2,)), 10)
    with new_adapter(lm, name, SMALL.get(name), context=CONTEXT) as model:
        result = train_stage(lm, methods()["ia2"].stages[0], rows, rows, settings)
        with torch.no_grad():
            trained = read(model, lm.anatomy, batch, SITES)
            with using(lm, None):
                off = read(model, lm.anatomy, batch, SITES)
        save_adapter(model, tmp_path / "adapter", {})
    assert result.value is not None
    assert result.value < result.log[0]["eval_value"]
    with torch.no_grad():
        after = read(lm.base, lm.anatomy, batch, SITES)
        for site in SITES:
            assert torch.equal(before[site], after[site]), site
            assert torch.equal(before[site], off[site]), site
            assert not torch.equal(before[site], trained[site]), site
        with loaded_adapters(lm, {"mine": tmp_path / "adapter"}), using(lm, "mine"):
            loaded = read(lm.model, lm.anatomy, batch, SITES)
        assert all(torch.equal(trained[site], loaded[site]) for site in SITES)
        if name == "full":
            plain = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
        else:
            plain = PeftModel.from_pretrained(random_model("llama"), str(tmp_path / "adapter")).eval()
        logits = plain(torch.tensor([bare[0].ids])).logits[0, -2]  # whatever virtual tokens stand before it
        torch.testing.assert_close(logits, loaded["logits"][0], rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in lm.base.parameters())
    with new_adapter(lm, name, start=tmp_path / "adapter", context=CONTEXT) as model, torch.no_grad():
        assert any(p.requires_grad for p in model.parameters())
        assert torch.equal(read(model, lm.anatomy, batch, {"logits"})["logits"], loaded["logits"])


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_aligned_positions_decode_to_the_response(
    lm: LanguageModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an adapter that adds tokens too: what the hooked module sees at the aligned positions, decoded to text."""
    rows = reasoned_rows(4)
    batch = lm.encoder.collate([lm.encoder.encode(build_prompt(GENERATED, (), e.query, e.label)) for e in rows])
    with new_adapter(lm, name, SMALL.get(name), context=CONTEXT) as model, torch.no_grad():
        for layer in lm.base.model.layers:  # layers that leave the embeddings as they are
            monkeypatch.setattr(layer, "forward", lambda hidden_states, *args, **kwargs: hidden_states)
        embedded = read(model, lm.anatomy, batch, {"hidden"}, layers={0})["hidden"][:, 0]
    table = lm.base.get_input_embeddings().weight
    seen = torch.cdist(embedded, table).argmin(-1)
    assert torch.equal(seen, batch.input_ids[batch.response_mask])
    text = lm.encoder.tokenizer.decode(batch.response_ids)
    assert text == lm.encoder.tokenizer.decode(
        [i for e in rows for i in lm.encoder.piece(GENERATED.completion(e.label))]
    )


@pytest.mark.parametrize("name", ["lora", "prompt-tuning", "prefix-tuning", "cpt", "cartridge", "full"])
def test_batched_answers_equal_single_ones(lm: LanguageModel, name: str, tmp_path: Path) -> None:
    with new_adapter(lm, name, context=CONTEXT) as model:
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.05 * torch.randn_like(p))
        save_adapter(model, tmp_path / name, {})
    variant = Variant("", adapter="mine")
    rows = [lm.encoder.encode(build_prompt(GENERATED, (), row.query)) for row in ROWS]
    with loaded_adapters(lm, {"mine": tmp_path / name}):
        together = answer(lm, LABELS, ROWS, variant)
        alone = [answer(lm, LABELS, [row], variant)[0] for row in ROWS]
        texts = generate(lm, rows, GENERATED)
        assert texts == [generate(lm, [row], GENERATED)[0] for row in rows]
    base = answer(lm, LABELS, ROWS, Variant("zero-shot"))
    for a, b, c in zip(together, alone, base, strict=True):
        assert a.p_labels == pytest.approx(b.p_labels, abs=1e-5)
        assert a.p_labels != pytest.approx(c.p_labels, abs=1e-5)


def test_cartridge_begins_as_the_context_itself(lm: LanguageModel) -> None:
    taught = lm.encoder.encode(build_prompt(LABELS, ROWS[1:], ROWS[0].query, "0"))
    with torch.no_grad():
        expected = read(lm.base, lm.anatomy, lm.encoder.collate([taught]), {"attn_out"})["attn_out"]
        query = replace(taught, ids=taught.ids[-taught.n_query - taught.n_response :])  # no second BOS
        with new_adapter(lm, "cartridge", context=CONTEXT) as model:
            found = read(model, lm.anatomy, lm.encoder.collate([query]), {"attn_out"})["attn_out"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "name", "options", "message"),
    [
        ("llama", "lorra", {}, "unknown adapter 'lorra': did you mean 'lora'?"),
        ("llama", "lora", {"rank": 4}, "unknown option of the adapter 'lora' 'rank'"),
        (
            "llama",
            "lora",
            {"target_modules": ["no_proj"]},
            "LlamaForCausalLM cannot take the adapter 'lora' (Target modules",
        ),
        ("llama", "adalora", {}, "adapter 'adalora': AdaLoRA does not work when `total_step` is None"),
        ("gpt2", "loha", {}, "GPT2LMHeadModel cannot take the adapter 'loha'"),
    ],
)
def test_what_cannot_be_done_is_said(architecture: str, name: str, options: dict[str, object], message: str) -> None:
    lm = wrap_model(random_model(architecture), build_tokenizer())
    with pytest.raises(IA2Error) as error, new_adapter(lm, name, options):
        pass
    assert message in str(error.value)
    assert lm.model is lm.base


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens", "input_layernorm"])
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings")
def test_whole_modules_that_are_trained_too_leave_the_base_as_it_was(
    lm: LanguageModel, module: str, tmp_path: Path
) -> None:
    batch = lm.encoder.collate([lm.encoder.encode(build_prompt(LABELS, (), e.query, e.label)) for e in ROWS])

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return read(lm.model, lm.anatomy, batch, {"logits"})["logits"]

    before = logits()
    with new_adapter(lm, "lora", {"modules_to_save": [module]}) as model:
        for name, weight in model.named_parameters():
            if weight.requires_grad and "modules_to_save" in name:
                weight.data += 1.0
        trained = logits()
        with using(lm, None):
            assert torch.equal(logits(), before)
        save_adapter(model, tmp_path / "adapter", {})
    assert not torch.allclose(trained, before)
    assert torch.equal(logits(), before)
    with loaded_adapters(lm, {"mine": tmp_path / "adapter"}):
        with using(lm, "mine"):
            assert torch.equal(logits(), trained)
        with using(lm, None):
            assert torch.equal(logits(), before)
    assert torch.equal(logits(), before)


def kinds(lm: LanguageModel) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in lm.base.named_modules()]


def test_an_adapter_that_fails_half_way_leaves_the_base_as_it_was(lm: LanguageModel, tmp_path: Path) -> None:
    before = kinds(lm)
    with pytest.raises(IA2Error, match="cannot take the adapter 'psoft'"), new_adapter(lm, "psoft"):
        pass  # it fits the queries' projection, and the keys' no more
    assert kinds(lm) == before
    for rank in (2, 4):
        with new_adapter(lm, "lora", {"r": rank}) as model:
            save_adapter(model, tmp_path / str(rank), {})
    (tmp_path / "2" / "adapter_config.json").write_bytes((tmp_path / "4" / "adapter_config.json").read_bytes())
    (tmp_path / "2" / "training.json").unlink()
    folders = {"whole": tmp_path / "4", "broken": tmp_path / "2"}
    with pytest.raises(IA2Error, match="expected a PEFT folder"), loaded_adapters(lm, folders):
        pass
    assert kinds(lm) == before
    assert lm.model is lm.base


@pytest.mark.parametrize(
    "options", [{"bias": "lora_only"}, {"init_lora_weights": "pissa_niter_4"}, {"layer_replication": [[0, 2], [1, 3]]}]
)
def test_options_that_change_the_base_itself_are_refused(
    lm: LanguageModel, options: dict[str, object], tmp_path: Path
) -> None:
    message = f"{next(iter(options))} is .*, which changes the base model itself"
    with pytest.raises(IA2Error, match=message), new_adapter(lm, "lora", options):
        pass
    own = lm.base.model.layers[0].self_attn.q_proj.weight.clone()
    model = get_peft_model(random_model("llama"), LoraConfig(target_modules=["q_proj"], **options))  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    with pytest.raises(IA2Error, match=message), loaded_adapters(lm, {"mine": tmp_path}):
        pass
    with pytest.raises(IA2Error, match=message), new_adapter(lm, start=tmp_path):
        pass
    assert torch.equal(lm.base.model.layers[0].self_attn.q_proj.weight, own)


@pytest.mark.parametrize(
    ("name", "options"), [("ln-tuning", {}), ("full", {}), ("lora", {"modules_to_save": ["lm_head"]})]
)
def test_no_weights_are_trained_in_half_precision(name: str, options: dict[str, object]) -> None:
    lm = wrap_model(random_model("llama").bfloat16(), build_tokenizer())
    with (
        pytest.raises(IA2Error, match=f"'{name}' would train weights in torch.bfloat16"),
        new_adapter(lm, name, options),
    ):
        pass


def test_adapters_that_begin_as_the_context_need_one(lm: LanguageModel) -> None:
    with pytest.raises(IA2Error, match="begins as the teacher's context, and there is none"), new_adapter(lm, "cpt"):
        pass


def test_an_adapter_that_peft_does_not_save_whole_is_not_trained_further(lm: LanguageModel, tmp_path: Path) -> None:
    options = {"num_virtual_tokens": 4, "encoder_hidden_size": 16}
    with new_adapter(lm, "p-tuning", options) as model:
        save_adapter(model, tmp_path / "adapter", {})
    with (
        pytest.raises(IA2Error, match="cannot be trained further"),
        new_adapter(lm, start=tmp_path / "adapter", seed=1),
    ):
        pass
