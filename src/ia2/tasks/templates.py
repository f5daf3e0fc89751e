"""Templates, such as `Text:{sentence}`: they put columns of a row into text, and can do nothing else.

`{column}`, `{column[key]}`, `{column[0]}`; `{column:.256}` is its first 256 characters; `{{` and `}}` are braces.
"""

import re
import string
from functools import cache
from typing import Any, NamedTuple

from ia2.data import Row
from ia2.errors import IA2Error, choose

_PATH = re.compile(r"([^\d\[\]][^\[\]]*)((?:\[[^\[\]]+\])*)")
_CUT = re.compile(r"(?:\.(\d+))?")


class _Part(NamedTuple):
    literal: str
    path: str  # of the column that follows the literal; none behind the last one
    cut: int | None


def fill(template: str, row: Row) -> str:
    """The template with the row's values, numbers and truth values written out.

    Raises:
        IA2Error: the row has no such column, or something there that is not text.
    """
    return "".join(part.literal + (_text(part.path, row)[: part.cut] if part.path else "") for part in parse(template))


@cache
def parse(template: str) -> tuple[_Part, ...]:
    """The pieces of a template.

    Raises:
        IA2Error: it is not of the form that this module's docstring describes.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise IA2Error(f"the template {template!r} is not one ({error}); write {{{{ for a brace") from None
    parts = []
    for literal, path, spec, conversion in pieces:
        cut = _CUT.fullmatch(spec or "")
        if conversion or cut is None or (path is not None and not _PATH.fullmatch(path)):
            field = f"{{{path}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
            raise IA2Error(
                f"the template {template!r} has {field}; expected {{column}}, {{column[key]}} or {{column:.256}}"
            )
        parts.append(_Part(literal, path or "", int(cut[1]) if cut[1] else None))
    return tuple(parts)


def look_up(path: str, row: Row) -> Any:
    """The value at `column`, `column[key]` or `column[0]`.

    Raises:
        IA2Error: there is none.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise IA2Error(f"'{path}' is no column; expected column or column[key]")
    try:
        value = row.columns[choose("column", match[1], row.columns)]
    except IA2Error as error:
        raise IA2Error(f"{row.where}: {error}") from None
    for key in re.findall(r"\[(.+?)\]", match[2]):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (LookupError, TypeError, ValueError):
            raise IA2Error(f"{row.where}: no '{path}'; '{match[1]}' is {row.columns[match[1]]!r}") from None
    return value


def _text(path: str, row: Row) -> str:
    value = look_up(path, row)
    if not isinstance(value, (str, int, float)):
        raise IA2Error(f"{row.where}: '{path}' is {value!r}, expected a text")
    return str(value)
