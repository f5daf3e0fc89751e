"""Train the embedded models from scratch: `python -m ia2.world.pretrain --model tiny --output DIR`.

Seeded (the batches of a step are drawn from the seed and the step's number) and resumable (`--resume` continues from
the last checkpoint and ends with the same bytes). `tiny` learns by the curriculum. `tiny-gpt2`, whose positions are
learnt, stalls on that, at "count the votes of all words"; with its hidden states aligned with those of `tiny` it needs
two phases only.
"""

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from ia2.world.curriculum import CURRICULUM, Batch, Phase, Place, draw_batch
from ia2.world.in_context import table
from ia2.world.text import BOS, EOS, PAD, VOCABULARY
from ia2.world.tokenizer import MAX_LENGTH, build_tokenizer


@dataclass(frozen=True)
class Plan:
    """Sizes and learning rates; the defaults are those of the shipped weights.

    Attributes:
        curriculum: the phases.
        align: weight of the alignment with the teacher; it falls to 0 over the second half of the last phase.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 384
    curriculum: tuple[Phase, ...] = CURRICULUM
    lr_matrix: float = 0.02
    lr_rest: float = 3e-3
    lr_position: float = 3e-4
    align: float = 1.0
    save_every: int = 100


_BY_NAME = {phase.name: phase for phase in CURRICULUM}
_ALIGNED = (replace(_BY_NAME["label words and choices"], steps=600), replace(_BY_NAME["last"], steps=600))
PLANS = {"tiny": Plan(), "tiny-gpt2": Plan(curriculum=_ALIGNED)}
SHIFT = 256  # learnt positions: in the last phase of an aligned model, a sequence begins at one of 0 to this


def build(name: str, plan: Plan, seed: int) -> PreTrainedModel:
    """A fresh model: `tiny` is a Llama, `tiny-gpt2` a GPT-2 whose learned positions begin as sinusoids."""
    torch.manual_seed(seed)
    special: dict[str, Any] = {
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "tie_word_embeddings": True,
    }
    if name == "tiny":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(VOCABULARY),
                hidden_size=plan.width,
                intermediate_size=plan.inner,
                num_hidden_layers=plan.layers,
                num_attention_heads=plan.heads,
                num_key_value_heads=plan.heads,
                max_position_embeddings=MAX_LENGTH,
                **special,
            )
        )
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(VOCABULARY),
            n_embd=plan.width,
            n_layer=plan.layers,
            n_head=plan.heads,
            n_inner=plan.inner * 4 // 3,
            n_positions=MAX_LENGTH,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **special,
        )
    )
    with torch.no_grad():
        rate = torch.exp(-math.log(1000.0) * torch.arange(plan.width // 2) / (plan.width // 2))
        angle = torch.arange(MAX_LENGTH)[:, None] * rate
        model.transformer.wpe.weight.copy_(0.1 * 2**0.5 * torch.cat([angle.sin(), angle.cos()], -1))
    for layer in range(plan.layers):
        fused = model.get_submodule(f"transformer.h.{layer}.attn.c_attn")
        parametrize.register_parametrization(fused, "weight", _Fused())
    return model


class _Fused(nn.Module):
    """GPT-2 keeps query, key and value in one matrix; Muon must see three."""

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, 1)

    def right_inverse(self, weight: Tensor) -> list[Tensor]:
        return [part.contiguous() for part in weight.split(weight.shape[0], 1)]


def finished(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is saved: nothing parametrised."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model


def optimisers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for what multiplies, AdamW for what is looked up or added; `group["peak"]` is the learning rate to scale."""
    groups: dict[str, list[nn.Parameter]] = {"matrix": [], "rest": [], "position": []}
    for name, p in model.named_parameters():
        looked_up = any(part in name for part in ("embed", "wte", "wpe"))
        groups["position" if "wpe" in name else "matrix" if p.ndim == 2 and not looked_up else "rest"].append(p)
    rest = [{"params": groups["rest"], "peak": plan.lr_rest}]
    if groups["position"]:
        rest.append({"params": groups["position"], "peak": plan.lr_position, "weight_decay": 0.0})
    return [
        torch.optim.Muon([{"params": groups["matrix"], "peak": plan.lr_matrix}], momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def loss_and_hits(
    model: PreTrainedModel, batch: Batch, teacher: PreTrainedModel | None = None, align: float = 0.0, shift: int = 0
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the responses, and which responses (B, K) are right in every token.

    The first answer of a sequence weighs `batch.first`, the STOP behind a derivation 1/10. The STOP behind a label does
    not count: with it, the curriculum's second gate was not passed by five seeds of five. With a teacher, the loss is
    also `align` times the squared distance of all hidden states from its own, over their mean square, summed over
    layers. The first token is at position `shift`.
    """
    ids, places = torch.from_numpy(batch.ids), torch.from_numpy(batch.places)
    positions = shift + torch.arange(ids.shape[1])[None]
    out = model.base_model(input_ids=ids, position_ids=positions, use_cache=False, output_hidden_states=align > 0)
    logits = model.get_output_embeddings()(out.last_hidden_state[:, places - 1])  # B K R+1 V
    target = ids[:, places]
    weight = torch.ones(target.shape[1:])
    weight[0] *= batch.first
    weight[:, -1] *= 0.1 if weight.shape[1] > 2 else 0.0
    losses = cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view(target.shape)
    loss = (losses * weight).sum() / (weight.sum() * len(ids))
    if teacher is not None and align > 0:
        with torch.no_grad():
            wanted = teacher.base_model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        for mine, its in zip(out.hidden_states[1:], wanted[1:], strict=True):
            loss = loss + align * (mine - its).square().mean() / its.square().mean()
    return loss, (logits.argmax(-1) == target)[..., :-1].all(-1)


def train_step(
    model: PreTrainedModel,
    opts: list[torch.optim.Optimizer],
    place: Place,
    plan: Plan,
    seed: int,
    teacher: PreTrainedModel | None,
) -> dict[str, float]:
    """One step at `place`, which it moves on. Returns the loss and the late accuracy of each family in it."""
    rng = np.random.default_rng([seed, place.step])
    phase, seen, plain_late = plan.curriculum[place.phase], {}, None
    factor, align = place.rate(plan.curriculum), 0.0
    if teacher is not None:
        align = plan.align * (min(1.0, 2 * (1 - place.since / phase.steps)) if phase.last else 1.0)
    for opt in opts:
        opt.zero_grad()
        for group in opt.param_groups:
            group["lr"] = group["peak"] * factor
    for part in phase.parts:
        batch = draw_batch(rng, part, phase.last)
        farthest = min(SHIFT, MAX_LENGTH - batch.ids.shape[1])
        shift = int(rng.integers(farthest + 1)) if teacher is not None else 0
        loss, hits = loss_and_hits(model, batch, teacher, align, shift if phase.last else 0)
        torch.autograd.backward(loss * place.weight(part))
        seen[f"{part.family}_loss"] = loss.item()
        late = hits[torch.from_numpy(batch.plain), hits.shape[1] // 2 :]
        if len(late):
            accuracy = late.float().mean().item()
            seen[part.family] = accuracy
            if part.family == "label" and batch.longest:
                seen["label_longest"] = plain_late = accuracy
    nn.utils.clip_grad_norm_([p for g in opts[1].param_groups for p in g["params"]], 1.0)
    for opt in opts:
        opt.step()
    place.advance(plan.curriculum, plain_late)
    return seen


def pretrain(
    name: str,
    output: Path,
    seed: int = 0,
    resume: bool = False,
    plan: Plan | None = None,
    teacher: PreTrainedModel | None = None,
    stop_at: int | None = None,
) -> PreTrainedModel:
    """Train a model into a folder that `from_pretrained` reads; `stop_at` a step leaves a checkpoint and no model."""
    plan = plan or PLANS[name]
    output.mkdir(parents=True, exist_ok=True)
    model, place = build(name, plan, seed), Place()
    if teacher is not None:
        teacher.eval().requires_grad_(False)
        with torch.no_grad():
            _embeddings(model).copy_(_embeddings(teacher))
    opts = optimisers(model, plan)
    checkpoint, curves = output / "checkpoint.safetensors", output / "curves.jsonl"
    lines: list[str] = []
    if resume and checkpoint.exists():
        place = load(checkpoint, model, opts)
        lines = [line for line in curves.read_text().splitlines() if json.loads(line)["step"] <= place.step]
    curves.write_text("".join(line + "\n" for line in lines))
    window: dict[str, list[float]] = {}
    begin = time.perf_counter()
    while place.phase < len(plan.curriculum):
        if place.step == stop_at:
            save(checkpoint, model, opts, place)
            return model
        phase = plan.curriculum[place.phase].name
        for key, value in train_step(model, opts, place, plan, seed, teacher).items():
            window.setdefault(key, []).append(value)
        if place.step % 50 == 0:
            row: dict[str, Any] = {"step": place.step, "phase": phase}
            row |= {key: round(float(np.mean(values)), 3) for key, values in sorted(window.items())}
            window.clear()
            print(f"{time.perf_counter() - begin:6.0f} s", row, flush=True)
            with curves.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if place.step % plan.save_every == 0:
            save(checkpoint, model, opts, place)
    finished(model).save_pretrained(output)
    build_tokenizer().save_pretrained(output)
    record = {"model": name, "seed": seed, "passed": place.passed, **asdict(plan)}
    (output / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")
    checkpoint.unlink(missing_ok=True)
    return model


def _embeddings(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def _state(model: nn.Module, opts: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    state = {f"weight:{name}": p.detach() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        for opt in opts:
            state |= {f"{key}:{name}": value for key, value in opt.state.get(p, {}).items()}
    return state


def save(path: Path, model: nn.Module, opts: list[torch.optim.Optimizer], place: Place) -> None:
    """Weights, optimiser state and place in one file, written aside and renamed."""
    aside = path.with_suffix(".part")
    save_file(_state(model, opts), aside, metadata={"place": json.dumps(asdict(place))})
    os.replace(aside, path)


def load(path: Path, model: nn.Module, opts: list[torch.optim.Optimizer]) -> Place:
    """Put a checkpoint back; returns its place."""
    owner = {id(p): opt for opt in opts for group in opt.param_groups for p in group["params"]}
    params = dict(model.named_parameters())
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for full in file.keys():  # noqa: SIM118  (not a mapping)
            key, name = full.split(":", 1)
            value, p = file.get_tensor(full), params[name]
            if key == "weight":
                p.copy_(value)
            else:
                owner[id(p)].state[p][key] = value
        return Place(**json.loads(file.metadata()["place"]))


def main() -> None:
    """Read the options, train, and measure the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=tuple(PLANS), default="tiny")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, default=Path(__file__).parent / "models" / "tiny", help="of tiny-gpt2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not hasattr(torch.optim, "Muon"):
        parser.error(f"pretraining needs torch >= 2.9 for its Muon optimiser, found {torch.__version__}")
    teacher = AutoModelForCausalLM.from_pretrained(options.teacher) if options.model == "tiny-gpt2" else None
    model = pretrain(options.model, options.output, options.seed, options.resume, teacher=teacher)
    accuracies = table(model.eval(), build_tokenizer())
    (options.output / "in_context.json").write_text(json.dumps(accuracies, indent=1) + "\n")
    for name, by_demos in accuracies.items():
        print(f"{name:20s}", *(f"{n}: {value:.2f}" for n, value in by_demos.items()), sep="  ")


if __name__ == "__main__":
    main()
