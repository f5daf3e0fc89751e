"""The teacher pass: what the model does at the aligned positions when the context is in its prompt."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ia2.adapters import using
from ia2.capture import BEFORE, Selection, Site, paths
from ia2.files import damaged, written_aside
from ia2.models import LanguageModel
from ia2.passes import passes
from ia2.progress import step
from ia2.prompt import Prompt, Tokens

SHARD_BYTES = 2**26  # of targets that are in memory while they are collected


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
        folder: where to keep it, in a folder named by a hash of everything that determines it (weights, precision,
            token ids, selection), as safetensors of `SHARD_BYTES` each. Those that are there are not computed again;
            the values are memory-mapped, so that memory does not grow with the number of rows.

    Raises:
        IA2Error: a file that is there was cut off or changed; names it.
    """
    rows = [lm.encoder.encode(prompt) for prompt in prompts]
    place = folder / _key(lm, rows, selection) if folder else None
    values: dict[Site, list[Tensor]] = {site: [] for site in selection.sites}
    with step("collect", len(rows)) as advance, using(lm, None):
        for start, part in _shards(lm, rows, selection):
            flat = _shard(lm, part, selection, place / f"{start:09d}.safetensors" if place else None)
            for site in selection.sites:
                values[site] += flat[site].split([selection.size(row, site) for row in part])
            advance(len(part))
    return Targets(values)


def _shard(lm: LanguageModel, rows: Sequence[Tokens], selection: Selection, path: Path | None) -> dict[str, Tensor]:
    if path is None:
        return _collect(lm, rows, selection)
    if not path.is_file():
        values = _collect(lm, rows, selection)
        with written_aside(path) as aside:
            save_file(values, aside, {"sha256": _digest(values)})
    return _read_shard(path)


def _read_shard(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            digest = (file.metadata() or {}).get("sha256")
        if digest not in (None, _digest(load_file(path))):  # mapped apart, so that what was read is given back
            raise damaged(path, "its checksum is another")
        return load_file(path)
    except SafetensorError as error:
        raise damaged(path, error) from None


def _digest(values: Mapping[Any, Tensor]) -> str:
    digest = hashlib.sha256()
    for site in sorted(values):
        digest.update(values[site].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _collect(lm: LanguageModel, rows: Sequence[Tokens], selection: Selection) -> dict[str, Tensor]:
    parts: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(rows) for site in selection.sites}
    for chosen, _, values in passes(lm, rows, selection.sites, selection.layers, selection.positions):
        for site, value in values.items():
            sizes = [selection.size(rows[i], site) for i in chosen]
            for i, part in zip(chosen, value.cpu().split(sizes), strict=True):
                parts[site][i] = part
    return {site: torch.cat(values) for site, values in parts.items()}


def _shards(lm: LanguageModel, rows: Sequence[Tokens], selection: Selection) -> Iterator[tuple[int, Sequence[Tokens]]]:
    """Rows in parts of at most `SHARD_BYTES`, or one row; with the number of the first."""
    start, size = 0, 0
    for i, row in enumerate(rows):
        own = n_bytes(lm, row, selection)
        if i > start and size + own > SHARD_BYTES:
            yield start, rows[start:i]
            start, size = i, 0
        size += own
    yield start, rows[start:]


def n_bytes(lm: LanguageModel, row: Tokens, selection: Selection) -> int:
    """Of one row's targets."""
    config = lm.base.config.get_text_config()
    widths: dict[Site, int] = {"logits": int(config.vocab_size)}
    for site in BEFORE & selection.sites:
        weight: Any = lm.base.get_submodule(paths(lm.anatomy, site)[0]).weight
        widths[site] = weight.numel() // int(config.hidden_size)
    return sum(
        selection.size(row, site)
        * widths.get(site, int(config.hidden_size))
        * (len(paths(lm.anatomy, site, selection.layers)) or 1)
        * lm.base.dtype.itemsize
        for site in selection.sites
    )


def _key(lm: LanguageModel, rows: Sequence[Tokens], selection: Selection) -> str:
    layers = sorted(selection.layers) if selection.layers is not None else None
    what: list[Any] = [lm.fingerprint, str(lm.base.dtype), sorted(selection.sites), layers, selection.positions]
    what.append([(row.ids, row.n_response, row.n_query) for row in rows])
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
