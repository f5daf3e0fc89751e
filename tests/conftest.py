"""Small random-weight models of several architectures, and a few rows to train them on. No network, no files."""

import gc
import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are so small that a second thread only waits

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import ia2.run  # noqa: F401 - all there is, before the line below
from ia2.contexts import Contexts
from ia2.data import Example
from ia2.models import LanguageModel, wrap_model
from ia2.prompt import Prompt
from ia2.task import Task
from ia2.world.tokenizer import build_tokenizer

gc.freeze()  # accelerate collects garbage after each training; what is imported by now is none
torch.set_num_threads(1)
V = len(build_tokenizer())
SPECIAL: dict[str, Any] = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE: dict[str, Any] = {
    **SPECIAL,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GROUPED: dict[str, Any] = {**SHAPE, "intermediate_size": 48, "num_key_value_heads": 2}
WIDE: dict[str, Any] = {**GROUPED, "head_dim": 16}  # heads that are together wider than the model
SLIDING: dict[str, Any] = {"sliding_window": 4}  # shorter than any prompt of the tests
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}

CORE: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen3": WIDE,
    "gpt2": {**SPECIAL, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "gpt_neox": {**SHAPE, "intermediate_size": 48},
    "opt": {**SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32},
}
ARCHITECTURES: dict[str, dict[str, Any]] = {  # by transformers' name: the arguments of its configuration
    **CORE,
    "qwen2": GROUPED,
    "mistral": {**GROUPED, **SLIDING},
    "gemma2": {**WIDE, **SLIDING, "query_pre_attn_scalar": 16},
    "gemma3_text": {
        **WIDE,
        **SLIDING,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
    },
    "phi3": GROUPED,
    "falcon": SHAPE,
    "bloom": {**SPECIAL, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "olmo2": GROUPED,
    "starcoder2": {**GROUPED, **SLIDING},
    "smollm3": GROUPED,
    "granite": {**GROUPED, "residual_multiplier": 0.5},
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**WIDE, **EXPERTS, "moe_intermediate_size": 24},
    "olmoe": {**GROUPED, **EXPERTS},
    "jamba": {**GROUPED, **EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "qwen3_next": {
        **WIDE,
        **EXPERTS,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
        "layer_types": ["full_attention", "linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}


def random_model(architecture: str) -> PreTrainedModel:
    """Weights large enough that layers and positions differ visibly."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim in (2, 3):  # matrices, and those of experts
                parameter.mul_(4.0)
    return model


@pytest.fixture(params=list(CORE))
def any_lm(request: pytest.FixtureRequest) -> LanguageModel:
    return wrap_model(random_model(request.param), build_tokenizer())


@pytest.fixture
def lm() -> LanguageModel:
    return wrap_model(random_model("llama"), build_tokenizer())


@pytest.fixture
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    random_model("llama").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def teacher_prompts(task: Task, demos: list[Example], rows: list[Example]) -> list[Prompt]:
    """Each row behind the other demos, in random order."""
    contexts, rng = Contexts(tuple(demos)), np.random.default_rng(0)
    return [contexts.prompt(task, row, row.label, rng) for row in rows]


LABELS = Task(("0", "1"))
GENERATED = Task(None, max_new_tokens=8)


def example_rows(n: int) -> list[Example]:
    """Labelled texts of different lengths."""
    words = ["gloomy", "happy", "soup", "apple", "Friday", "banana", "which", "winter", "summer", "city"]
    texts = [" ".join(words[(i + j) % len(words)] for j in range(1 + i % 4)) for i in range(n)]
    return [Example(f"Text:{text}\nLabel:", str(i % 2)) for i, text in enumerate(texts)]


def reasoned_rows(n: int) -> list[Example]:
    """The same with responses of several tokens, of different lengths."""
    return [
        Example(row.query, f"{' '.join(['gloomy 0'] * (1 + i % 3))} #### {i % 3}")
        for i, row in enumerate(example_rows(n))
    ]
