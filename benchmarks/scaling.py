"""The tables of docs/scaling.md: what models of 1B to 70B need on 1, 8 and 64 GPUs, by the estimate of `ia2 doctor`.

python -m benchmarks.scaling
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ia2.adapters import n_trainable, new_adapter
from ia2.capture import Selection
from ia2.estimate import Needs, estimate
from ia2.models import LanguageModel, wrap_model
from ia2.passes import TOKENS_PER_BATCH
from ia2.prompt import Tokens
from ia2.world.tokenizer import build_tokenizer

# type, vocabulary, width, of the feed-forward block, layers, heads, width of a head, tied; each has 8 heads of keys
MODELS: dict[str, tuple[str, int, int, int, int, int, int, bool]] = {
    "Llama-3.2-1B": ("llama", 128256, 2048, 8192, 16, 32, 64, True),
    "Qwen3-4B": ("qwen3", 151936, 2560, 9728, 36, 32, 128, True),
    "Llama-3.1-8B": ("llama", 128256, 4096, 14336, 32, 32, 128, False),
    "Qwen3-32B": ("qwen3", 151936, 5120, 25600, 64, 64, 128, False),
    "Llama-3.1-70B": ("llama", 128256, 8192, 28672, 80, 64, 128, False),
}
GPUS = (1, 8, 64)
QUERY, RESPONSE, DEMOS = 64, 4, 16  # tokens, and how many demos of both the teacher sees
N_PROMPTS, N_STEPS, BATCH = 1000, 1000, 4
RESERVED = 12e9  # bytes, for CUDA itself and what is not used for being in pieces


@dataclass(frozen=True)
class Gpu:
    """Of an H100 SXM, eight in a machine: bytes, operations a second that are reached in bfloat16, bytes a second."""

    memory: float = 80e9
    flops: float = 400e12  # two fifths of the peak
    bandwidth: float = 3.35e12
    link: float = 450e9  # to the others of the machine
    network: float = 50e9  # to other machines


@dataclass(frozen=True)
class Plan:
    """One model on some GPUs: how the weights lie, bytes a GPU, seconds."""

    model: str
    n_gpus: int
    weights: str
    needs: Needs
    collect_seconds: float
    train_seconds: float


@cache
def shape(name: str) -> LanguageModel:
    """A model of the shape, without weights; where its sites are is found on one that is as deep, and narrow."""
    kind, _, _, _, layers, _, _, tied = MODELS[name]
    narrow = wrap_model(_model(kind, 512, 32, 32, layers, 8, 4, tied), build_tokenizer())
    with torch.device("meta"):
        base = _model(*MODELS[name])
    return LanguageModel(base, narrow.encoder, replace(narrow.anatomy, base=base))


def with_weights(name: str, device: str, dtype: torch.dtype) -> LanguageModel:
    """A model of the shape, with random weights."""
    with torch.device(device):
        return wrap_model(_model(*MODELS[name], dtype=dtype), build_tokenizer())


def _model(
    kind: str,
    vocabulary: int,
    width: int,
    ffn: int,
    layers: int,
    heads: int,
    head: int,
    tied: bool,
    dtype: torch.dtype = torch.bfloat16,
) -> PreTrainedModel:
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=head,
        tie_word_embeddings=tied,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def plans(gpu: Gpu = Gpu()) -> Iterator[Plan]:
    """For each model and number of GPUs: whole weights where they fit; else 4 bits on one, shares on several."""
    for name in MODELS:
        lm = shape(name)
        with new_adapter(lm) as model:
            n_adapter = n_trainable(model)
        for n in GPUS:
            needs, lie = needs_of(lm, n_adapter, n, False), "whole"
            if max(needs.collecting, needs.training) > gpu.memory - RESERVED:
                needs, lie = (four_bits(lm, needs), "4-bit") if n == 1 else (needs_of(lm, n_adapter, n, True), "shared")
            yield Plan(name, n, lie, needs, *seconds(lm, needs, n, lie == "shared", gpu))


def needs_of(lm: LanguageModel, n_adapter: int, n: int, shared: bool) -> Needs:
    """Of the workload; no two prompts begin alike."""
    bare = QUERY + RESPONSE
    teacher = [Tokens((i, *(0,) * (DEMOS * bare + bare - 1)), RESPONSE, QUERY) for i in range(N_PROMPTS)]
    student = [Tokens((0,) * bare, RESPONSE, QUERY)] * N_PROMPTS
    return estimate(lm, teacher, student, Selection(frozenset({"attn_out"})), n_adapter, BATCH, n, shared)


def four_bits(lm: LanguageModel, needs: Needs) -> Needs:
    """With the layers' matrices in 4 bits, and a scale of 32 bits for every 64 of their numbers."""
    layers = [lm.base.get_submodule(path) for path in lm.anatomy.layers]
    saved = sum((2 - 4.5 / 8) * m.weight.numel() for of in layers for m in of.modules() if isinstance(m, nn.Linear))
    weights, collecting, training = (int(of - saved) for of in (needs.weights, needs.collecting, needs.training))
    return replace(needs, weights=weights, collecting=collecting, training=training)


def seconds(lm: LanguageModel, needs: Needs, n: int, shared: bool, gpu: Gpu) -> tuple[float, float]:
    """Of `N_PROMPTS` prompts collected, of `N_STEPS` steps: compute or reading the weights, whichever is slower; and
    fetching the others' shares, once a pass forward and once backward."""
    size = sum(p.numel() * p.element_size() for p in lm.base.parameters())
    fetch = size / (gpu.link if n <= 8 else gpu.network) if shared else 0.0
    n_passes = -(-N_PROMPTS * (DEMOS + 1) * (QUERY + RESPONSE) // (TOKENS_PER_BATCH * n))
    collect = max(needs.collect_flops / gpu.flops, n_passes * size / gpu.bandwidth) + n_passes * fetch
    step = max(needs.step_flops / gpu.flops, 2 * size / gpu.bandwidth) + 2 * fetch
    return collect, N_STEPS * step


def table(found: Iterable[Plan]) -> str:
    """As on the page."""
    lines = [
        "| model | GPUs | weights | GB a GPU | to collect | to train | targets, GB | collect, s | train, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for plan in found:
        sizes = (plan.needs.weights, plan.needs.collecting, plan.needs.training, plan.needs.targets)
        cells = [plan.model, str(plan.n_gpus), plan.weights, *(f"{of / 1e9:.1f}" for of in sizes)]
        cells += [f"{of:.0f}" if of >= 10 else f"{of:.1f}" for of in (plan.collect_seconds, plan.train_seconds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(plans()))
