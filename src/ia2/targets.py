"""The teacher pass: what the model does at response positions when the demos are in its context."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ia2.capture import Site, batches, read
from ia2.data import Example
from ia2.files import written_aside
from ia2.models import LanguageModel
from ia2.progress import step
from ia2.prompt import Prompt, Tokens, build_prompt
from ia2.task import Task


@dataclass(frozen=True)
class Targets:
    """What the teacher did, by site and row: (R, L, D) for `attn_out`, (R, V) for `logits`."""

    values: dict[Site, list[Tensor]]


def teacher_prompts(
    task: Task, demos: Sequence[Example], rows: Sequence[Example], rng: np.random.Generator
) -> list[Prompt]:
    """Each row behind the demos in random order, itself left out where it is one of them (paper, stage 1)."""
    prompts = []
    for row in rows:
        others = [demo for demo in demos if demo is not row]
        chosen = [others[i] for i in rng.permutation(len(others))]
        prompts.append(build_prompt(task, chosen, row.query, row.label))
    return prompts


@torch.no_grad()
def collect(
    lm: LanguageModel, prompts: Sequence[Prompt], sites: Collection[Site], folder: Path | None = None
) -> Targets:
    """Run the base model over teacher prompts, each with its response, and keep `sites` at the response positions.

    Args:
        lm: its base model is the teacher; it must have no adapter attached.
        prompts: with responses.
        sites: what to keep, in the model's own precision.
        folder: where to keep it, as safetensors named by a hash of everything that determines it (weights, precision,
            token ids, sites). A file of this name is read instead of computed.
    """
    rows = [lm.encoder.encode(prompt) for prompt in prompts]
    path = folder / f"{_key(lm, rows, sites)}.safetensors" if folder else None
    if path and path.is_file():
        flat = load_file(path)
    else:
        flat = _collect(lm, rows, sites)
        if path:
            with written_aside(path) as aside:
                save_file(flat, aside)
    sizes = [row.n_response for row in rows]
    return Targets({site: list(flat[site].split(sizes)) for site in sites})


def _collect(lm: LanguageModel, rows: Sequence[Tokens], sites: Collection[Site]) -> dict[str, Tensor]:
    parts: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(rows) for site in sites}
    with step("collect", len(rows)) as advance:
        for chosen in batches(rows):
            batch = lm.encoder.collate([rows[i] for i in chosen]).to(lm.device)
            for site, values in read(lm.base, lm.anatomy, batch, sites).items():
                for i, value in zip(chosen, values.cpu().split([rows[i].n_response for i in chosen]), strict=True):
                    parts[site][i] = value
            advance(len(chosen))
    return {site: torch.cat(values) for site, values in parts.items()}


def _key(lm: LanguageModel, rows: Sequence[Tokens], sites: Collection[Site]) -> str:
    what = [lm.fingerprint, str(lm.base.dtype), sorted(sites), [(row.ids, row.n_response) for row in rows]]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
