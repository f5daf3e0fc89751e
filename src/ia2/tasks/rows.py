"""The rows of a task file: from the hub, from local copies of its data sets, or from files of one's own."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ia2.data import Example, Row, read_rows
from ia2.errors import IA2Error, choose
from ia2.progress import say
from ia2.tasks.rendering import render
from ia2.tasks.taskfile import Splits, TaskFile
from ia2.tasks.templates import look_up


@dataclass(frozen=True)
class Pools:
    """The examples to draw from, none in two of them; without `dev` ones, those are drawn from `train`.

    `report` says, a line a split, what was left out or changed.
    """

    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    report: tuple[str, ...]


def local_folder(file: TaskFile) -> Path | None:
    """Where the rows of the data set are on this machine, if IA2_DATA names a folder that has them."""
    if file.dataset is None or not os.environ.get("IA2_DATA"):
        return None
    folder = Path(os.environ["IA2_DATA"]) / (file.folder or file.name)
    return folder if folder.is_dir() else None


def read_pools(file: TaskFile, base: Path) -> Pools:
    """Read all rows of a task, and say what is left out of each split.

    Args:
        file: the task.
        base: the folder that its `files` are relative to.

    Raises:
        IA2Error: rows out of reach, an empty split, or a row that the task file does not fit.
    """
    raw = _read(file, base)
    pools: dict[str, list[Example]] = {"dev": []}
    report, seen = [], dict[str, str]()
    for split in (split for split in ("test", "dev", "train") if split in raw):
        pools[split], counts = _kept(file, split, raw[split], seen)
        what = ", ".join(f"{n} {why}" for why, n in counts.items())
        if not pools[split]:
            raise IA2Error(f"{file.name} {split}: no rows left of {len(raw[split])}; {what or 'it is empty'}")
        if what:
            report.append(f"{file.name} {split}: {len(pools[split])} of {len(raw[split])} rows; {what}")
            say(report[-1])
    if "test" not in pools:
        pools["train"], pools["test"] = _cut(pools["train"])
    if not pools["test"]:
        raise IA2Error(f"{file.name}: {len(pools['train'])} rows are too few to set a third aside for testing")
    return Pools(pools["train"], pools["dev"], pools["test"], tuple(report))


def _kept(file: TaskFile, split: str, rows: Sequence[Row], seen: dict[str, str]) -> tuple[list[Example], Counter[str]]:
    """The examples of a split that neither `drop` nor an equal query among those `seen` leaves out; counts of these."""
    counts: Counter[str] = Counter()
    chosen = []
    for row in rows:
        column = next((c for c, values in file.drop.items() if str(look_up(c, row)) in map(str, values)), None)
        if column is None:
            chosen.append(row)
        else:
            counts[f"left out by their '{column}'"] += 1
    kept = []
    for row, example in zip(chosen, render(file, chosen), strict=True):
        key = " ".join(example.query.casefold().split())
        if key in seen:
            counts["left out as they occur twice" if seen[key] == split else f"left out as {seen[key]} has them"] += 1
            continue
        seen[key] = split
        response = example.label
        if not file.labels and file.separator in response:
            response = _closed(file, row, response)
            counts["whose response had blank lines, now closed"] += 1
        kept.append(Example(example.query, response, example.context))
    return kept, counts


def _closed(file: TaskFile, row: Row, response: str) -> str:
    """The response without blank lines, where a blank line would end it when it is generated."""
    if file.separator != "\n\n":
        raise IA2Error(f"{row.where}: the response holds the separator {file.separator!r}; choose another 'separator'")
    while "\n\n" in response:
        response = response.replace("\n\n", "\n")
    return response


def _cut(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """A third of the rows for testing, the same whatever their order: those whose query has the lowest hash."""
    ranked = sorted(examples, key=lambda example: hashlib.sha256(example.query.encode()).digest())
    return ranked[len(ranked) // 3 :], ranked[: len(ranked) // 3]


def _read(file: TaskFile, base: Path) -> dict[str, list[Row]]:
    """Raw rows of `train`, and of `dev` and `test` where the task says what serves as these."""
    if file.files:
        return {split: [row for name in names for row in read_rows(base / name)] for split, names in _named(file.files)}
    folder = local_folder(file)
    sources = {path.stem: path for path in sorted(folder.glob("*.jsonl"))} if folder else _from_hub(file)

    def rows_of(name: str) -> list[Row]:
        source = sources[choose(f"split of {folder or file.dataset}", name, sources)]
        if isinstance(source, Path):
            return read_rows(source)
        return [Row(f"{file.dataset} {name}:{i}", row) for i, row in enumerate(source, 1)]

    serving = _named(file.splits) if file.splits else [("train", list(sources))]
    return {split: [row for name in names for row in rows_of(name)] for split, names in serving}


def _named(splits: Splits) -> list[tuple[str, Sequence[str]]]:
    return [(split, names) for split, names in splits if names]


def _from_hub(file: TaskFile) -> dict[str, Any]:
    """The splits of a `datasets.DatasetDict`."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        try:
            return dict(load_dataset(file.dataset, file.config))
        except RuntimeError:  # a data set with a loading script: the hub has its rows as Parquet on a branch
            return dict(load_dataset(file.dataset, data_dir=file.config, revision="refs/convert/parquet"))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        names = [name for _, names in _named(file.splits) for name in names] if file.splits else ["train"]
        local = " and ".join(f"{file.folder or file.name}/{name}.jsonl" for name in names)
        raise IA2Error(
            f"cannot load the data set '{file.dataset}' from the Hugging Face hub ({' '.join(str(error).split())}); "
            f"for local rows, set IA2_DATA to a folder that has {local}"
        ) from None
