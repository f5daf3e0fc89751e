"""Small random-weight models of several architectures, and a few rows to train them on. No network, no files."""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are so small that a second thread only waits

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ia2.contexts import Contexts
from ia2.data import Example
from ia2.models import LanguageModel, wrap_model
from ia2.prompt import Prompt
from ia2.task import Task
from ia2.world.tokenizer import build_tokenizer

torch.set_num_threads(1)
V = len(build_tokenizer())
SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GROUPED: dict[str, Any] = {**SHAPE, "intermediate_size": 48, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=16)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=3, n_head=4, n_positions=512)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, intermediate_size=48)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=32)),
}


def random_model(architecture: str) -> PreTrainedModel:
    """Weights large enough that layers and positions differ visibly."""
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    for module in model.modules():  # as `load_model` does by the configuration
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.fixture(params=list(ARCHITECTURES))
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
