"""What the folder of results says of how they were made: runs, their trainings, an analysis."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from ia2.files import read_json, read_jsonl
from ia2.report.frame import table

SPLITS = {"train": "Training rows", "dev": "Development rows", "unlabelled": "Unlabelled rows"}
UNLABELLED = "+unlabelled"  # ends the name of a method that had more queries
MOST = 12  # different values of an option that are written out


@dataclass(frozen=True)
class Training:
    """A stage of a run: the log of each learning rate that was tried, and the rate chosen."""

    name: str
    cell: str
    rate: float
    logs: dict[float, list[dict[str, float]]]


def find_runs(folder: Path) -> list[Path]:
    """Of a run its own folder; of a comparison or a sweep those of each method in each cell."""
    return [path.parent for path in sorted([*folder.glob("config.yaml"), *folder.glob("cells/*/*/config.yaml")])]


def find_analysis(folder: Path, cells: bool = False) -> dict[str, Any] | None:
    """What `ia2 analyze` found; with `cells`, of the first one that was analysed, if the whole was not."""
    found = [*folder.glob("analysis.json"), *(sorted(folder.glob("cells/*/analysis.json")) if cells else ())]
    return dict(read_json(found[0])) if found else None


def find_trainings(folder: Path) -> list[Training]:
    """The trainings of all runs; a stage that several methods of a cell share, once."""
    found = [training for run in find_runs(folder) for training in _trainings(run, folder)]
    return list({(training.name, training.cell): training for training in found}.values())


def _trainings(run: Path, folder: Path) -> Iterator[Training]:
    cell = "" if run == folder else run.parent.name
    suffix = UNLABELLED if run.name.endswith(UNLABELLED) else ""
    for path in sorted(run.glob("adapters/*/training.json")):
        kept = read_json(path)
        logs = {of["learning_rate"]: of["log"] for of in kept["trainings"]}
        yield Training(f"{path.parent.name}{suffix}", cell, kept["learning_rate"], logs)


def record(folder: Path, n_test: int | None = None) -> str:
    """How results were made: the command, environment, rows, and all options of the runs; nothing without runs."""
    runs = find_runs(folder)
    if not runs:
        return ""
    configs = [yaml.safe_load((run / "config.yaml").read_bytes()) for run in runs]
    found = [read_json(run / "environment.json") for run in runs]
    commands = dict.fromkeys(_command(of["command"]) for of in found)
    counts = [Counter(row["split"] for row in read_jsonl(run / "examples.jsonl")) for run in runs]
    rows = {title: _values([of[split] for of in counts]) for split, title in SPLITS.items()}
    rows |= {"Test rows": str(n_test)} if n_test else {}
    options = {name: _values([of.get(name) for of in configs]) for name in configs[0]}
    return (
        f'<p>The command that repeats it:</p><pre tabindex="0">{escape(chr(10).join(commands))}</pre>'
        f"{_listed('Rows, of each run.', {**rows, 'Seeds': options['seed']})}"
        f"<details><summary>Environment</summary>{_listed('Of the first run.', _flat(found[0]))}</details>"
        f"<details><summary>All options</summary>{_listed(f'Of the runs, {len(runs)} in all.', options)}</details>"
    )


def _command(words: list[str]) -> str:
    name, *arguments = words
    return shlex.join([*(["python", "-m", "ia2"] if name == "__main__.py" else [name]), *arguments])


def _flat(environment: dict[str, Any]) -> dict[str, str]:
    packages = environment["packages"]
    others = {key: str(value) for key, value in environment.items() if key not in ("packages", "command")}
    return {**others, **packages}


def _values(values: Sequence[Any]) -> str:
    """The different ones."""
    texts = list(dict.fromkeys(value if isinstance(value, str) else json.dumps(value) for value in values))
    return ", ".join(texts[:MOST]) + (f" and {len(texts) - MOST} more" if len(texts) > MOST else "")


def _listed(caption: str, values: dict[str, str]) -> str:
    rows = [[escape(name), escape(_clipped(value))] for name, value in values.items()]
    return f'<div class="record">{table(caption, ["What", "Value"], rows)}</div>'


def _clipped(text: str, n: int = 2000) -> str:
    return text if len(text) <= n else f"{text[:n]}… ({len(text)} characters)"
