"""The teacher pass: what the model does at the aligned positions when the context is in its prompt."""

import hashlib
import json
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ia2.adapters import using
from ia2.capture import BEFORE, Selection, Site, paths
from ia2.files import damaged, written_alone
from ia2.models import LanguageModel
from ia2.passes import passes
from ia2.processes import is_shared, processes
from ia2.progress import step
from ia2.prompt import Prompt, Tokens

SHARD_BYTES = 2**26  # of targets that are in memory while they are collected
SHARD_ROWS = 4096


class Parts(Sequence[Tensor]):
    """Rows of different sizes that lie in tensors one after the other; each is a view, made as it is asked for."""

    def __init__(self, wholes: Sequence[Tensor], sizes: Sequence[Sequence[int]]):
        """Of each whole, the sizes of its rows."""
        self._wholes = wholes
        self._ends = [np.cumsum([0, *of]) for of in sizes]
        self._starts = np.cumsum([0, *(len(of) for of in sizes)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        k = bisect_right(self._starts, i) - 1
        start, end = self._ends[k][i - self._starts[k] :][:2]
        return self._wholes[k][start:end]


class Computed(Sequence[Tensor]):
    """Rows that are computed as they are asked for."""

    def __init__(self, n: int, row: Callable[[int], Tensor]):
        """So many, each by its index."""
        self._n, self._row = n, row

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: Any) -> Any:
        picked = range(self._n)[i]
        return [self._row(k) for k in picked] if isinstance(picked, range) else self._row(picked)


@dataclass(frozen=True)
class Targets:
    """What the teacher did, by site and row: (positions, L, D) of activations, (R, V) of `logits`."""

    values: Mapping[Site, Sequence[Tensor]]


@torch.no_grad()
def collect(
    lm: LanguageModel, prompts: Collection[Prompt], selection: Selection, folder: Path | None = None
) -> Targets:
    """Run the base model over teacher prompts, each with its response, and keep what is selected.

    Args:
        lm: its base model is the teacher; an adapter that is attached is switched off.
        prompts: with responses; gone through twice, and never held all at once.
        selection: what to keep, in the model's own precision.
        folder: where to keep it, in a folder named by a hash of everything that determines it (weights, precision,
            token ids, selection), as safetensors of `SHARD_BYTES` each. Those that are there are not computed again;
            the values are memory-mapped, so that memory does not grow with the number of rows. Several processes
            compute every n-th of them each, and read all.

    Raises:
        IA2Error: a file that is there was cut off or changed; names it.
    """
    place = folder / _key(lm, prompts, selection) if folder else None
    n, own = processes().num_processes, processes().process_index
    shards: list[dict[str, Tensor]] = []
    paths: list[Path] = []
    sizes: dict[Site, list[Sequence[int]]] = {site: [] for site in selection.sites}
    with step("collect", len(prompts)) as advance, using(lm, None):
        for i, (start, rows) in enumerate(_shards(lm, prompts, selection)):
            for site in selection.sites:
                sizes[site].append(array("q", [selection.size(row, site) for row in rows]))
            if place is None:
                shards.append(_collect(lm, rows, selection))
            else:
                paths.append(place / f"{start:09d}.safetensors")
                if i % n == own:
                    _keep(lm, rows, selection, paths[-1])
            advance(len(rows))
        if place:
            if own >= len(paths) % n > 0:
                _keep(lm, (), selection, place)  # the others compute the last ones
            processes().wait_for_everyone()
            shards = [_read_shard(path) for path in paths]
    return Targets({site: Parts([shard[site] for shard in shards], sizes[site]) for site in selection.sites})


def live(lm: LanguageModel, prompts: Collection[Prompt], selection: Selection) -> Targets:
    """As `collect`, but nothing is kept: a row is computed when it is asked for, each time."""
    rows = [lm.encoder.encode(prompt) for prompt in prompts]

    @lru_cache(maxsize=1)  # its sites are asked for one after the other
    def values(i: int) -> dict[str, Tensor]:
        training = lm.model.training
        lm.model.eval()
        try:
            with torch.no_grad(), using(lm, None):
                return _collect(lm, rows[i : i + 1], selection)
        finally:
            lm.model.train(training)

    return Targets({site: Computed(len(rows), lambda i, site=site: values(i)[site]) for site in selection.sites})  # type: ignore[misc]


def _keep(lm: LanguageModel, rows: Sequence[Tokens], selection: Selection, path: Path) -> None:
    """Compute and write a shard, unless it is there; where weights are shared, take part in what the others compute."""
    if rows and not path.is_file():
        values = _collect(lm, rows, selection)
        with written_alone(path) as aside:
            save_file(values, aside, {"sha256": _digest(values)})
    elif is_shared(lm.base):
        deque(passes(lm, (), selection.sites))


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


def _shards(
    lm: LanguageModel, prompts: Collection[Prompt], selection: Selection
) -> Iterator[tuple[int, Sequence[Tokens]]]:
    """Rows in parts of at most `SHARD_ROWS` and `SHARD_BYTES`, or one row; with the number of the first."""
    start, size = 0, 0
    rows: list[Tokens] = []
    for row in map(lm.encoder.encode, prompts):
        own = n_bytes(lm, row, selection)
        if len(rows) == SHARD_ROWS or (rows and size + own > SHARD_BYTES):
            yield start, rows
            start, size, rows = start + len(rows), 0, []
        size += own
        rows.append(row)
    if rows:
        yield start, rows


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


def _key(lm: LanguageModel, prompts: Collection[Prompt], selection: Selection) -> str:
    layers = sorted(selection.layers) if selection.layers is not None else None
    what: list[Any] = [lm.fingerprint, str(lm.base.dtype), sorted(selection.sites), layers, selection.positions]
    digest = hashlib.sha256(json.dumps(what).encode())
    for row in map(lm.encoder.encode, prompts):
        digest.update(json.dumps([row.ids, row.n_response, row.n_query]).encode())
    return digest.hexdigest()[:32]
