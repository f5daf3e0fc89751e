"""Labelled and unlabelled examples, and the files they come from: JSON lines, CSV and Parquet."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ia2.errors import IA2Error

FORMS = {"query": "response", "prompt": "completion", "messages": "messages"}  # as TRL takes them, the last two
EXPECTED = "'query' and 'response'"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """A query and the response it should get; `response` is None where it is not known.

    `context` is text that the teacher sees before the query and the student does not (`privileged_context`).
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


class Row(NamedTuple):
    """One row as it is read; `where` is what errors call it, such as `a.jsonl:3`."""

    where: str
    columns: Mapping[str, Any]


class Message(NamedTuple):
    """One of a conversation; a query that is a text is a user's, a response an assistant's."""

    role: str
    text: str


def read_examples(path: str | Path, labelled: bool = True) -> list[Example]:
    """Read a file of `query`/`response` rows, or of `prompt`/`completion` or `messages`, the forms that TRL takes.

    Of a conversation, the last message, an assistant's, is the response; a system message at its start is the context;
    what is between, joined by line ends, is the query.

    Args:
        path: see `read_rows`.
        labelled: whether every row must have a response; without it, responses are ignored.

    Raises:
        IA2Error: no such file, no rows, or a row that is not as described; names file and line.
    """
    return to_examples(read_rows(path), labelled)


def parse_examples(text: str, source: str, labelled: bool = True) -> list[Example]:
    """As `read_examples`, from JSON lines; `source` is what errors call them."""
    return to_examples(_filled(_json_lines(text, source), source), labelled)


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a CSV file (`.csv`, with a header), a Parquet file (`.parquet`), or else of JSON lines.

    Text is UTF-8; blank lines are ignored.

    Raises:
        IA2Error: no such file, no rows, or a line that cannot be read; names file and line.
    """
    path = Path(path)
    if not path.exists():
        raise IA2Error(f"{path}: no such file; expected JSON lines with {EXPECTED}")
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _filled(_parquet(path), str(path))
    text = read_text(path)
    return _filled(_csv(text, str(path)) if kind == ".csv" else _json_lines(text, str(path)), str(path))


def read_text(path: Path) -> str:
    """A UTF-8 file.

    Raises:
        IA2Error: no such file, or other bytes; names the line.
    """
    try:
        return decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise IA2Error(f"{path}: {(error.strerror or 'unreadable').lower()}; expected a text file") from None


def decoded(content: bytes, source: str) -> str:
    """UTF-8 text; `source` is what errors call it.

    Raises:
        IA2Error: other bytes; names the line.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise IA2Error(f"{source}:{line}: not UTF-8 text ({error.reason}); save it as UTF-8") from None


def _filled(rows: Iterable[Row], source: str) -> list[Row]:
    if found := list(rows):
        return found
    raise IA2Error(f"{source}: no rows; expected JSON lines with {EXPECTED}")


def _json_lines(text: str, source: str) -> Iterator[Row]:
    for i, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Row(f"{source}:{i}", _json_object(line, f"{source}:{i}"))


def _json_object(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line, parse_constant=_not_a_number)
    except json.JSONDecodeError as error:
        raise IA2Error(f"{where}: not JSON ({error.msg} at column {error.colno}); expected one object a line") from None
    except (ValueError, RecursionError) as error:
        raise IA2Error(f"{where}: not JSON ({error}); expected one object a line") from None
    if not isinstance(row, Mapping):
        raise IA2Error(f"{where}: found {type(row).__name__}, expected an object with {EXPECTED}")
    return row


def _not_a_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _csv(text: str, source: str) -> Iterator[Row]:
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = lines.fieldnames or []
        if len(set(names)) < len(names):
            raise IA2Error(f"{source}:1: two columns have the same name; the header is {', '.join(map(repr, names))}")
        for row in lines:
            if None in row or None in row.values():
                raise IA2Error(f"{source}:{lines.line_num}: not {len(names)} fields, as the header has")
            yield Row(f"{source}:{lines.line_num}", row)
    except csv.Error as error:
        raise IA2Error(f"{source}:{lines.reader.line_num}: not CSV ({error})") from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise IA2Error(f"{path}: not Parquet ({' '.join(str(error).split())})") from None
    for i, row in enumerate(rows, 1):
        yield Row(f"{path}:{i}", row)


def to_examples(rows: Sequence[Row], labelled: bool = True) -> list[Example]:
    """Rows as examples; all have the form of the first.

    Raises:
        IA2Error: a row without a query, or (if `labelled`) without a response, or of another form than the first.
    """
    forms = [_form(row) for row in rows]
    for form, row in zip(forms, rows, strict=True):
        if form != forms[0]:
            raise IA2Error(f"{row.where}: has '{form}', but {rows[0].where} has '{forms[0]}'; expected one form a file")
    return [_example(row, form, labelled) for form, row in zip(forms, rows, strict=True)]


def _form(row: Row) -> str:
    return next((form for form in FORMS if form in row.columns), next(iter(FORMS)))


def _example(row: Row, form: str, labelled: bool) -> Example:
    asked = _messages(row, form, "user")
    answers = _messages(row, FORMS[form], "assistant") if labelled and form != "messages" else []
    if form == "messages" and asked[-1].role == "assistant":
        asked, answers = asked[:-1], asked[-1:]
    system = [asked.pop(0).text] if asked and asked[0].role == "system" else []
    roles = [message.role for message in asked]
    answering = [message.role for message in answers]
    if roles[-1:] != ["user"] or "system" in roles or (labelled and answering != ["assistant"]):
        raise IA2Error(
            f"{row.where}: the messages are of {', '.join(['system' for _ in system] + roles + answering)}; expected "
            "one of the system at most, first, and at the end one of the user and its answer, of the assistant"
        )
    own = privileged_context(row)
    if system and own:
        raise IA2Error(f"{row.where}: a system message and a 'privileged_context'; expected one, it is the context")
    query = "\n".join(message.text for message in asked)
    return Example(query, answers[0].text if labelled else None, system[0] if system else own)


def _messages(row: Row, name: str, role: str) -> list[Message]:
    """Of a column: a list of messages, or a text, which is one of `role`."""
    value = column(row, name)
    if name in ("query", "response") or (name != "messages" and not isinstance(value, list)):
        return [Message(role, text_of(value, f"'{name}'", row.where))]
    if not isinstance(value, list) or not value:
        raise IA2Error(f"{row.where}: '{name}' is {value!r}, expected a list of messages")
    for message in value:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise IA2Error(f"{row.where}: '{name}' holds {message!r}, expected a message with 'role' and 'content'")
        if message["role"] not in ROLES:
            raise IA2Error(f"{row.where}: a message of {message['role']!r}; expected one of {', '.join(ROLES)}")
    what = f"the content in '{name}'"
    return [Message(message["role"], text_of(message["content"], what, row.where)) for message in value]


def privileged_context(row: Row) -> str | None:
    """The row's `privileged_context`, if it has one."""
    value = row.columns.get("privileged_context")
    return None if value in (None, "") else text_of(value, "'privileged_context'", row.where)


def column(row: Row, name: str) -> Any:
    """The value of a column that must be there."""
    if name not in row.columns:
        has = ", ".join(map(repr, row.columns)) or "no columns"
        raise IA2Error(f"{row.where}: no '{name}'; the row has {has}")
    return row.columns[name]


def text_of(value: Any, what: str, where: str) -> str:
    """A value that must be a text, or a number, which is written out; `what` and `where` are for the error."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise IA2Error(f"{where}: {what} is {value!r}, expected a text that is not empty")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise IA2Error(f"{where}: {what} holds half a character (a lone surrogate); save the file as UTF-8")
    return value


def n_dev(n_train: int) -> int:
    """Development rows for so many training rows: min(48, N // 2) (paper, settings)."""
    return min(48, n_train // 2)


def hold_out(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Split off development examples: `n_dev(N)` for the N that are left to train on."""
    order = np.random.default_rng(seed).permutation(len(examples))
    held = set(order[: min(48, len(examples) // 3)].tolist())
    train = [e for i, e in enumerate(examples) if i not in held]
    dev = [e for i, e in enumerate(examples) if i in held]
    return train, dev
