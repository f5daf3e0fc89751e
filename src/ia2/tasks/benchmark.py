"""Benchmarks: examples to train on, to develop with and to test on, drawn by a seed, and how answers are scored."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from ia2.data import Example, hold_out
from ia2.errors import IA2Error, choose
from ia2.task import Task
from ia2.tasks.rows import local_folder, read_pools
from ia2.tasks.taskfile import read_task_file
from ia2.world import TASKS, WorldTask

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
N_TEST = 500  # of the paper
N_WORLD_TEST = 400  # every task of the world has so many


@dataclass(frozen=True)
class Benchmark:
    """A task with its examples.

    Attributes:
        name, description: for people.
        kind: `label`, `choice` (multiple choice) or `generated`.
        task: how prompts are made and answers are scored.
        ood: names of the tasks that an adapter of this one is also tested on, out of distribution.
        paper: whether it is a benchmark of the paper.
        source: where its rows come from.
        at_hand: where they are on this machine; None if they must come from the hub.
        draw: see `rows`.
        files: all that it is read from on this machine: its task file, and rows.
    """

    name: str
    description: str
    kind: str
    task: Task
    ood: tuple[str, ...]
    paper: bool
    source: str
    at_hand: str | None
    draw: Callable[[Split, int | None, int], list[Example]]
    files: Sequence[Path] = ()

    def rows(self, split: Split, n: int | None = None, seed: int = 0) -> list[Example]:
        """Draw examples. No query is in two splits, and fewer rows are always the first of more.

        Args:
            split: `train`, `dev` (take `ia2.data.n_dev(N)` for N training rows) or `test`.
            n: how many; None: all there are, but of `test` at most 500 (the paper's number).
            seed: of the draw.

        Raises:
            IA2Error: there are fewer than n, or the rows cannot be read.
        """
        choose("split", split, SPLITS)
        if n is not None and n < 0:
            raise IA2Error(f"{self.name}: {n} {split} rows are asked for; expected 0 or more")
        return self.draw(split, n, seed)

    def fingerprint(self) -> str:
        """A hash of its files: of the same ones, examples are the same; files that are missing count as empty."""
        contents = [path.read_bytes() if path.is_file() else b"" for path in self.files]
        return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()


def file_benchmark(path: Path) -> Benchmark:
    """The benchmark that a task file describes, its `files` relative to it; its rows are read when first drawn."""
    file, base = read_task_file(path), path.parent
    pools = cache(lambda: read_pools(file, base))

    def draw(split: Split, n: int | None, seed: int) -> list[Example]:
        train, dev = (pools().train, pools().dev) if pools().dev else hold_out(pools().train, seed)
        pool = {"train": train, "dev": dev, "test": pools().test}[split]
        if n is None:
            n = min(len(pool), N_TEST) if split == "test" else len(pool)
        if n > len(pool):
            raise IA2Error(
                f"{file.name}: {n} {split} rows are needed and there are {len(pool)}; "
                f"in all, {len(train)} to train on, {len(dev)} for development, {len(pools().test)} to test on"
            )
        order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(pool))
        return [pool[i] for i in order[:n]]

    here = local_folder(file)
    paths = [base / name for _, names in file.files or () for name in names]
    return Benchmark(
        name=file.name,
        description=file.description,
        kind="choice" if file.options else "label" if file.labels else "generated",
        task=file.task,
        ood=file.ood,
        paper=file.paper,
        source=file.dataset or ", ".join(map(str, paths)),
        at_hand=str(here) if here else "files" if paths else None,
        draw=draw,
        files=(path, *(sorted(here.glob("*.jsonl")) if here else paths)),
    )


def world_benchmark(task: WorldTask) -> Benchmark:
    """A task of the embedded world, whose rows are drawn as many as wanted."""

    def draw(split: Split, n: int | None, seed: int) -> list[Example]:
        if n is None and split != "test":
            raise IA2Error(f"{task.name}: there is no end of {split} rows; say how many")
        try:
            rows = task.rows(N_WORLD_TEST if n is None else n, seed, split)
        except ValueError as error:
            raise IA2Error(f"{error}, and {n} are needed") from None
        return [Example(row["query"], row["response"]) for row in rows]

    return Benchmark(
        name=task.name,
        description=task.description,
        kind={"sum": "generated"}.get(task.kind, task.kind),
        task=Task(task.labels, parser="hash"),
        ood=tuple(other.name for other in TASKS.values() if other.ood_of == task.name),
        paper=False,
        source="embedded world",
        at_hand="embedded",
        draw=draw,
    )
