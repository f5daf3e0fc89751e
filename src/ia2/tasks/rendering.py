"""From the rows of a data set to examples: templates, labels and multiple choice."""

import hashlib
from collections.abc import Sequence

from ia2.data import Example, Row, privileged_context, text_of, to_examples
from ia2.errors import IA2Error
from ia2.tasks.taskfile import Options, TaskFile
from ia2.tasks.templates import fill, look_up


def render(file: TaskFile, rows: Sequence[Row]) -> list[Example]:
    """The rows as the task file words them.

    Raises:
        IA2Error: a row lacks a column, or its label is not in the label set; names the row.
    """
    examples = [_rendered(file, row) for row in rows] if file.query else to_examples(rows) if rows else []
    if file.labels is None:
        return examples
    labelled = []
    for row, example in zip(rows, examples, strict=True):
        if example.label not in file.labels:
            allowed = ", ".join(map(repr, file.labels))
            raise IA2Error(f"{row.where}: the label {example.label!r} is not in the label set; allowed: {allowed}")
        labelled.append(Example(example.query, file.labels[example.label], example.context))
    return labelled


def _rendered(file: TaskFile, row: Row) -> Example:
    query, columns, response = file.query or "", dict(row.columns), None
    if file.options:
        columns["options"], response = _options(file.options, list(file.labels or ()), row)
    elif file.response:
        response = fill(file.response, row)
    query = text_of(fill(query, Row(row.where, columns)), "the query", row.where)
    return Example(query, text_of(response, "the response", row.where), privileged_context(row))


def _options(options: Options, names: Sequence[str], row: Row) -> tuple[str, str]:
    """The options as text, one a line, and the name of the right one (paper, SciQr and QASCr)."""
    if isinstance(options.texts, str):
        texts, right = _list(options.texts, row), look_up(options.answer, row)
    else:
        texts = [text_of(look_up(path, row), f"'{path}'", row.where) for path in options.texts]
        right = options.texts.index(options.answer) if options.answer in options.texts else look_up(options.answer, row)
    keys = _list(options.keys, row) if options.keys else [str(i) for i in range(len(texts))]
    if str(right) not in keys or len(keys) != len(texts):
        raise IA2Error(f"{row.where}: the right option is {str(right)!r}; expected one of {', '.join(map(repr, keys))}")
    if len(texts) > len(names):
        raise IA2Error(f"{row.where}: {len(texts)} options, but only {len(names)} labels to name them by")
    whole = "\n".join(texts)
    order = sorted(range(len(texts)), key=lambda i: hashlib.sha256(f"{i}\n{whole}".encode()).digest())
    lines = [f"[{name}]{texts[i]}" for name, i in zip(names, order, strict=False)]
    return "\n".join(lines), names[order.index(keys.index(str(right)))]


def _list(path: str, row: Row) -> list[str]:
    values = look_up(path, row)
    if not isinstance(values, list):
        raise IA2Error(f"{row.where}: '{path}' is {values!r}, expected a list")
    return [text_of(value, f"one of '{path}'", row.where) for value in values]
