"""Labelled and unlabelled examples, and the JSONL files they come from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ia2.errors import IA2Error

COLUMNS = (("query", "response"), ("prompt", "completion"))


@dataclass(frozen=True)
class Example:
    """A query and the response it should get; `response` is None where it is not known.

    `context` is text that the teacher sees before the query and the student does not.
    """

    query: str
    response: str | None = None
    context: str | None = None

    @property
    def label(self) -> str:
        """The response of a labelled example."""
        if self.response is None:
            raise IA2Error(f"the example {self.query!r} has no response, and one is needed here")
        return self.response


def read_examples(path: str | Path, labelled: bool = True) -> list[Example]:
    """Read a JSONL file of `query`/`response` rows (or `prompt`/`completion`, as TRL names them).

    Args:
        path: the file; UTF-8, one JSON object a line, blank lines ignored.
        labelled: whether every row must have a response; without it, responses are ignored.

    Raises:
        IA2Error: no such file, no rows, or a row that is not as described; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise IA2Error(f"{path}: no such file; expected JSON lines with 'query' and 'response'")
    return parse_examples(read_text(path), str(path), labelled)


def read_text(path: Path) -> str:
    """A UTF-8 file.

    Raises:
        IA2Error: no such file, or other bytes.
    """
    if not path.is_file():
        raise IA2Error(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise IA2Error(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None


def parse_examples(text: str, source: str, labelled: bool = True) -> list[Example]:
    """As `read_examples`, from text; `source` is what errors call it."""
    lines = enumerate(text.split("\n"), 1)
    examples = [_parse(line, f"{source}:{i}", labelled) for i, line in lines if line.strip()]
    if not examples:
        raise IA2Error(f"{source}: no rows; expected JSON lines with 'query' and 'response'")
    return examples


def _parse(line: str, where: str, labelled: bool) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise IA2Error(f"{where}: not JSON ({error.msg} at column {error.colno}); expected one object a line") from None
    if not isinstance(row, Mapping):
        raise IA2Error(f"{where}: found {type(row).__name__}, expected an object with 'query' and 'response'")
    query_name, response_name = next((names for names in COLUMNS if names[0] in row), COLUMNS[0])
    query = _text(row, query_name, where)
    return Example(query, _text(row, response_name, where) if labelled else None)


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        raise IA2Error(f"{where}: no '{name}'; the row has {', '.join(map(repr, row)) or 'no columns'}")
    value = row[name]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise IA2Error(f"{where}: '{name}' is {value!r}, expected a text that is not empty")
    return value


def hold_out(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Split off development examples: min(48, N // 2) for N that are left to train on (paper, settings)."""
    order = np.random.default_rng(seed).permutation(len(examples))
    n_dev = min(48, len(examples) // 3)
    held = set(order[:n_dev].tolist())
    train = [e for i, e in enumerate(examples) if i not in held]
    dev = [e for i, e in enumerate(examples) if i in held]
    return train, dev
