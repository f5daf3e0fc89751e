"""Every architecture, as a small random model: what is found in it is what its source says, and it is read exactly."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, GENERATED, WIDE, example_rows, random_model, reasoned_rows
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, Qwen2Tokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ia2.capture import read
from ia2.config import make_config
from ia2.errors import IA2Error
from ia2.models import LanguageModel, load_model, wrap_model
from ia2.prompt import Tokens, build_prompt
from ia2.run import Data, Run
from ia2.world.tokenizer import build_tokenizer

N_LAYERS = 3


@dataclass(frozen=True)
class Expected:
    """Names within a layer, read off transformers' source; several in order of execution."""

    layers: str = "model.layers"
    attention_layers: tuple[int, ...] = (0, 1, 2)
    projections: str = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
    mlp: str = "mlp.gate_proj mlp.up_proj mlp.down_proj"
    mlp_out: str = "mlp.down_proj"
    norms: str = "input_layernorm post_attention_layernorm"
    targets: str = "k_proj o_proj q_proj"
    ia3: str = "k_proj v_proj | down_proj"  # attention | feed-forward
    residual: bool = True  # a layer adds its attention's and its feed-forward block's output to what came in

    def paths(self, names: str, layers: tuple[int, ...] = (0, 1, 2)) -> tuple[str, ...]:
        return tuple(f"{self.layers}.{i}.{name}" for i in layers for name in names.split())


LLAMA = Expected()
FUSED = replace(
    LLAMA,
    mlp="mlp.dense_h_to_4h mlp.dense_4h_to_h",
    mlp_out="mlp.dense_4h_to_h",
    targets="dense query_key_value",
    ia3="query_key_value | dense_4h_to_h",
)
GEMMA = replace(
    LLAMA,
    norms="input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm",
    residual=False,  # what is added is normalised first
)
MIXTRAL = replace(LLAMA, mlp="", mlp_out="mlp", ia3="k_proj v_proj |")
EXPECTED = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "mistral": LLAMA,
    "smollm3": LLAMA,
    "granite": replace(LLAMA, residual=False),  # what is added is scaled first
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "olmo2": replace(GEMMA, norms="post_attention_layernorm post_feedforward_layernorm"),
    "phi3": replace(
        LLAMA,
        projections="self_attn.qkv_proj self_attn.o_proj",
        mlp="mlp.gate_up_proj mlp.down_proj",
        targets="o_proj qkv_proj",
        ia3="qkv_proj | down_proj",
    ),
    "starcoder2": replace(LLAMA, mlp="mlp.c_fc mlp.c_proj", mlp_out="mlp.c_proj", ia3="k_proj v_proj | c_proj"),
    "gpt2": Expected(
        layers="transformer.h",
        projections="attn.c_attn attn.c_proj",
        mlp="mlp.c_fc mlp.c_proj",
        mlp_out="mlp.c_proj",
        norms="ln_1 ln_2",
        targets="attn.c_attn attn.c_proj",
        ia3="c_attn | mlp.c_proj",
    ),
    "opt": Expected(
        layers="model.decoder.layers",
        projections="self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj",
        mlp="fc1 fc2",
        mlp_out="fc2",
        norms="self_attn_layer_norm final_layer_norm",
        targets="k_proj out_proj q_proj",
        ia3="k_proj v_proj | fc2",
    ),
    "gpt_neox": replace(FUSED, layers="gpt_neox.layers", projections="attention.query_key_value attention.dense"),
    "bloom": replace(FUSED, layers="transformer.h", projections="self_attention.query_key_value self_attention.dense"),
    "falcon": replace(
        FUSED,
        layers="transformer.h",
        projections="self_attention.query_key_value self_attention.dense",
        norms="input_layernorm",
    ),
    "mixtral": MIXTRAL,
    "qwen3_moe": MIXTRAL,
    "olmoe": MIXTRAL,
    "jamba": replace(LLAMA, attention_layers=(1,), norms="input_layernorm pre_ff_layernorm"),
    "qwen3_next": replace(LLAMA, attention_layers=(0, 2), mlp_out="mlp"),
}
architectures = pytest.mark.parametrize("name", ARCHITECTURES)


def expected_mlps(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`mlp` and `mlp_out`, for the two hybrids layer by layer."""
    if name == "jamba":  # experts in the middle layer
        dense = "feed_forward.gate_proj feed_forward.up_proj feed_forward.down_proj"
        ends = ("0.feed_forward.down_proj", "1.feed_forward", "2.feed_forward.down_proj")
        return LLAMA.paths(dense, (0, 2)), tuple(f"model.layers.{end}" for end in ends)
    if name == "qwen3_next":
        shared = " ".join(f"mlp.shared_expert.{matrix}" for matrix in ("gate_proj", "up_proj", "down_proj"))
        return LLAMA.paths(shared), LLAMA.paths("mlp")
    return EXPECTED[name].paths(EXPECTED[name].mlp), EXPECTED[name].paths(EXPECTED[name].mlp_out)


@architectures
def test_every_part_is_found(name: str) -> None:
    anatomy, expected = wrap_model(random_model(name), build_tokenizer()).anatomy, EXPECTED[name]
    attention = expected.attention_layers
    assert anatomy.layers == tuple(f"{expected.layers}.{i}" for i in range(N_LAYERS))
    assert anatomy.attention_layers == attention
    assert anatomy.projections == expected.paths(expected.projections, attention)
    assert anatomy.attn_out == expected.paths(expected.projections.split()[-1], attention)
    assert (anatomy.mlp, anatomy.mlp_out) == expected_mlps(name)
    assert sorted(anatomy.norms) == sorted(expected.paths(expected.norms))
    assert anatomy.default_targets == expected.targets.split()
    scaled, feedforward = (part.split() for part in expected.ia3.split("|"))
    assert anatomy.ia3_targets == (scaled + feedforward, feedforward)


def encoded(lm: LanguageModel) -> list[Tokens]:
    """Rows of several lengths, with responses of several lengths."""
    rows = reasoned_rows(4)
    return [lm.encoder.encode(build_prompt(GENERATED, rows[:i], row.query, row.label)) for i, row in enumerate(rows)]


@torch.no_grad()
def outputs_of(model: nn.Module, paths: tuple[str, ...], ids: tuple[int, ...]) -> list[Tensor]:
    """What the modules at `paths` give for one unpadded row, each (T, D); copied, for Falcon adds in place."""
    kept: dict[str, Tensor] = {}
    handles = []
    for path in paths:

        def keep(module: Any, args: Any, output: Any, path: str = path) -> None:
            kept[path] = (output[0] if isinstance(output, tuple) else output).view(len(ids), -1).clone()

        handles.append(model.get_submodule(path).register_forward_hook(keep))
    model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return [kept[path] for path in paths]


@architectures
def test_a_padded_batch_is_read_as_each_row_alone(name: str) -> None:
    lm, expected = wrap_model(random_model(name), build_tokenizer()), EXPECTED[name]
    paths = expected.paths(expected.projections.split()[-1], expected.attention_layers)
    rows = encoded(lm)
    with torch.no_grad():
        found = read(lm.base, lm.anatomy, lm.encoder.collate(rows), ("attn_out", "logits"))
    naive, logits = [], []
    for row in rows:
        acts = outputs_of(lm.base, paths, row.ids)
        positions = range(len(row.ids) - row.n_response - 1, len(row.ids) - 1)
        naive.append(torch.stack([torch.stack([act[t] for act in acts]) for t in positions]))
        with torch.no_grad():
            logits.append(lm.base(torch.tensor([row.ids])).logits[0, list(positions)])
    # Float32 sums in another order where rows are padded: a few roundings of values near 1 in each of three layers.
    torch.testing.assert_close(found["attn_out"], torch.cat(naive), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["logits"], torch.cat(logits), rtol=1e-4, atol=1e-5)
    assert torch.cat(naive).std(0).min() > 1e-4  # positions differ: a shift by one would show


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if EXPECTED[name].residual])
def test_attention_and_feed_forward_are_all_that_a_layer_adds(name: str) -> None:
    anatomy = wrap_model(random_model(name), build_tokenizer()).anatomy
    ids = tuple(range(3, 12))
    hidden = outputs_of(anatomy.base, anatomy.layers, ids)
    added = outputs_of(anatomy.base, anatomy.mlp_out, ids)
    attn = dict(zip(anatomy.attention_layers, outputs_of(anatomy.base, anatomy.attn_out, ids), strict=True))
    for i in set(attn) - {0}:
        torch.testing.assert_close(hidden[i] - hidden[i - 1], attn[i] + added[i], rtol=1e-4, atol=1e-5)


@architectures
def test_a_disabled_adapter_is_the_base_bit_for_bit(name: str) -> None:
    lm = wrap_model(random_model(name), build_tokenizer())
    ids = torch.tensor([range(3, 12)])
    base = lm.base(ids).logits
    config = LoraConfig(
        target_modules=lm.anatomy.default_targets,
        fan_in_fan_out=name == "gpt2",
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(lm.base, config).eval()
    adapted = {module for module, _ in model.base_model.model.named_modules() if module.endswith(".lora_A")}
    wanted = EXPECTED[name].paths(EXPECTED[name].projections, EXPECTED[name].attention_layers)
    assert adapted == {f"{path}.lora_A" for path in wanted if not path.endswith(".v_proj")}
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, base, atol=1e-2)
        with model.disable_adapter():
            assert torch.equal(model(ids).logits, base)


def own_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tests' tokenizer; but transformers reads one of Qwen2's class from any Qwen2 folder."""
    if name != "qwen2":
        return build_tokenizer()
    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return Qwen2Tokenizer({char: i for i, char in enumerate(alphabet)}, [])


def saved(name: str, folder: Path) -> str:
    """A model folder whose configuration asks for all the noise it can."""
    base = random_model(name)
    for key, value in base.config.to_dict().items():
        if ("drop" in key or "jitter" in key) and isinstance(value, float):
            setattr(base.config, key, 0.5)
    base.save_pretrained(folder)
    own_tokenizer(name).save_pretrained(folder)
    return str(folder)


@architectures
def test_a_whole_run_with_save_and_load(name: str, tmp_path: Path) -> None:
    lm = load_model(saved(name, tmp_path / "model"), device="cpu")
    before = {key: weight.clone() for key, weight in lm.base.state_dict().items()}
    rows = tuple(example_rows(6))
    options = {
        "num_train_epochs": 1,
        "learning_rate": (1e-2,),
        "per_device_train_batch_size": 2,
        "adapter_options": {"r": 2},
    }
    config = make_config({"model": str(tmp_path / "model"), **options})
    run = Run.create(tmp_path / "run", config, Data(rows[:4], rows[4:]))
    run.train(lm)
    weights = load_file(run.adapters["ia2-sft"] / "adapter_model.safetensors")
    assert all(weight.any() for key, weight in weights.items() if "lora_B" in key)
    assert not [key for key in weights if "router" in key or "expert" in key or ".gate." in key]
    after = lm.base.state_dict()
    assert before.keys() == after.keys()  # routers and experts among them
    assert all(torch.equal(before[key], after[key]) for key in before)
    queries = [row.query for row in rows]
    reloaded = Run.open(tmp_path / "run").predict(queries, load_model(config.model, device="cpu"))
    assert [answer.p_labels for answer in reloaded] == [answer.p_labels for answer in run.predict(queries, lm)]


@architectures
def test_a_base_that_asks_for_noise_computes_the_same_in_training(name: str, tmp_path: Path) -> None:
    lm = load_model(saved(name, tmp_path), device="cpu")
    ids = torch.tensor([range(3, 12)])
    evaluated = lm.base(ids).logits
    assert torch.equal(lm.base.train()(ids).logits, evaluated)


@pytest.mark.parametrize("name", ["llama", "mistral", "falcon", "gpt2", "mixtral"])
def test_implementations_of_attention_agree(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    found = {}
    for implementation in ("sdpa", "eager"):
        lm = load_model(folder, device="cpu", attn_implementation=implementation)
        assert lm.base.config._attn_implementation == implementation
        with torch.no_grad():
            found[implementation] = read(lm.base, lm.anatomy, lm.encoder.collate(encoded(lm)), ("attn_out",))[
                "attn_out"
            ]
        found[implementation, "fingerprint"] = lm.fingerprint
    torch.testing.assert_close(found["sdpa"], found["eager"], rtol=1e-4, atol=1e-5)
    assert found["sdpa", "fingerprint"] != found["eager", "fingerprint"]


def test_attention_is_found_where_a_kernel_hides_its_softmax() -> None:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():  # nothing is seen of what runs in a kernel
            return sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register("kernel", kernel)
    model = random_model("llama")
    expected = wrap_model(model, build_tokenizer()).anatomy
    model.set_attn_implementation("kernel")
    assert wrap_model(model, build_tokenizer()).anatomy == expected
    assert model.config._attn_implementation == "kernel"


def test_a_model_without_attention_is_refused() -> None:
    config = AutoConfig.for_model("mamba", vocab_size=64, hidden_size=32, num_hidden_layers=2)
    with pytest.raises(IA2Error, match=r"MambaForCausalLM: found no self-attention in 2 layers.*MambaMixer"):
        wrap_model(AutoModelForCausalLM.from_config(config), build_tokenizer())
    config = AutoConfig.for_model("rwkv", vocab_size=64, hidden_size=32, num_hidden_layers=2, context_length=32)
    with pytest.raises(
        IA2Error, match="found no self-attention in 2 layers"
    ):  # though it has a class RwkvSelfAttention
        wrap_model(AutoModelForCausalLM.from_config(config), build_tokenizer())


def test_the_site_of_a_feed_forward_block_that_is_not_there_says_so() -> None:
    kinds = ["full_attention", "mlp", "full_attention"]  # each layer has one or the other
    config = AutoConfig.for_model("nemotron_h", **WIDE, layers_block_type=kinds)
    anatomy = wrap_model(AutoModelForCausalLM.from_config(config), build_tokenizer()).anatomy
    assert anatomy.attn_out == ("model.layers.0.mixer.o_proj", "model.layers.2.mixer.o_proj")
    assert anatomy.mlp == ("model.layers.1.mixer.up_proj", "model.layers.1.mixer.down_proj")
    with pytest.raises(IA2Error, match=r"layer model\.layers\.0: found 0 feed-forward blocks \(none\), expected one"):
        _ = anatomy.mlp_out


def test_the_fingerprint_is_that_of_the_teacher(tmp_path: Path) -> None:
    folder = saved("mistral", tmp_path)
    lm = load_model(folder, device="cpu")
    fingerprint = lm.fingerprint
    assert load_model(folder, device="cpu").fingerprint == fingerprint
    options: list[dict[str, Any]] = [{}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [4]}]
    for more in options:
        other = load_model(folder, device="cpu")
        get_peft_model(other.base, LoraConfig(target_modules=other.anatomy.default_targets, **more))
        assert other.fingerprint == fingerprint  # an adapter does not change the teacher
    assert load_model(folder, device="cpu", dtype="bfloat16").fingerprint != fingerprint
    config = Path(folder) / "config.json"
    config.write_text(config.read_text().replace('"sliding_window": 4', '"sliding_window": 5'))
    assert load_model(folder, device="cpu").fingerprint != fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_base_of_any_precision(dtype: str, tmp_path: Path) -> None:
    lm = load_model(saved("llama", tmp_path), device="cpu", dtype=dtype)
    assert str(lm.base.dtype) == f"torch.{dtype}"
    assert {str(weight.dtype) for weight in lm.base.state_dict().values()} == {f"torch.{dtype}"}


def test_a_tokenizer_that_is_not_the_models_own_is_refused(tmp_path: Path) -> None:
    name = saved("qwen2", tmp_path)
    build_tokenizer().save_pretrained(name)
    with pytest.raises(IA2Error, match="the tokenizer, a Qwen2Tokenizer, has no token for the letter a"):
        load_model(name, device="cpu")


def test_what_cannot_be_loaded_says_why_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    name = saved("llama", folder)
    with pytest.raises(IA2Error, match="unknown dtype 'bfloat': did you mean 'bfloat16'"):
        load_model(name, dtype="bfloat")
    with pytest.raises(IA2Error, match="unknown quantization '3bit': did you mean"):
        load_model(name, quantization="3bit")
    if find_spec("bitsandbytes") is None:
        with pytest.raises(IA2Error, match=r"quantization '4bit' needs bitsandbytes.*pip install bitsandbytes"):
            load_model(name, quantization="4bit")
    if find_spec("flash_attn") is None:
        with pytest.raises(IA2Error, match=r"needs a package that is not installed.*Flash"):
            load_model(name, device="cpu", attn_implementation="flash_attention_2")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    save_file({key: value for key, value in tensors.items() if "o_proj" not in key}, weights, {"format": "pt"})
    with pytest.raises(IA2Error, match=r"lacks 3 weights of a LlamaForCausalLM \(model\.layers\.0\.self_attn\.o_proj"):
        load_model(name, device="cpu")
    weights.write_bytes(b"no weights")
    with pytest.raises(IA2Error, match="cannot load the model"):
        load_model(name, device="cpu")
