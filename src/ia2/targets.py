"""The teacher pass: what the model does at the aligned positions when the context is in its prompt."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ia2.adapters import using
from ia2.capture import Selection, Site
from ia2.files import written_aside
from ia2.models import LanguageModel
from ia2.passes import passes
from ia2.progress import step
from ia2.prompt import Prompt, Tokens


@dataclass(frozen=True)
class Targets:
    """What the teacher did, by site and row: (positions, L, D) of activations, (R, V) of `logits`."""

    values: dict[Site, list[Tensor]]


@torch.no_grad()
def collect(lm: LanguageModel, prompts: Sequence[Prompt], selection: Selection, folder: Path | None = None) -> Targets:
    """Run the base model over teacher prompts, each with its response, and keep what is selected.

    Args:
        lm: its base model is the teacher; an adapter that is attached is switched off.
        prompts: with responses.
        selection: what to keep, in the model's own precision.
        folder: where to keep it, as safetensors named by a hash of everything that determines it (weights, precision,
            token ids, selection). A file of this name is read instead of computed.
    """
    rows = [lm.encoder.encode(prompt) for prompt in prompts]
    path = folder / f"{_key(lm, rows, selection)}.safetensors" if folder else None
    if path and path.is_file():
        flat = load_file(path)
    else:
        flat = _collect(lm, rows, selection)
        if path:
            with written_aside(path) as aside:
                save_file(flat, aside)
    sites = selection.sites
    return Targets({site: list(flat[site].split([selection.size(row, site) for row in rows])) for site in sites})


def _collect(lm: LanguageModel, rows: Sequence[Tokens], selection: Selection) -> dict[str, Tensor]:
    parts: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(rows) for site in selection.sites}
    with step("collect", len(rows)) as advance, using(lm, None):
        for chosen, _, values in passes(lm, rows, selection.sites, selection.layers, selection.positions):
            for site, value in values.items():
                sizes = [selection.size(rows[i], site) for i in chosen]
                for i, part in zip(chosen, value.cpu().split(sizes), strict=True):
                    parts[site][i] = part
            advance(len(chosen))
    return {site: torch.cat(values) for site, values in parts.items()}


def _key(lm: LanguageModel, rows: Sequence[Tokens], selection: Selection) -> str:
    layers = sorted(selection.layers) if selection.layers is not None else None
    what: list[Any] = [lm.fingerprint, str(lm.base.dtype), sorted(selection.sites), layers, selection.positions]
    what.append([(row.ids, row.n_response, row.n_query) for row in rows])
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
