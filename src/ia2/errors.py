"""The one exception for mistakes that a user can mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class IA2Error(ValueError):
    """The message says in one line what was found, what was expected and what to do.

    The command line prints it and exits with code 2. What a message quotes may be anything: line ends and control
    characters are escaped, so that it stays one line and cannot steer a terminal.
    """

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


def choose(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`; otherwise raise `IA2Error` with the nearest known name."""
    names = list(known)
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of: {', '.join(names)}"
    raise IA2Error(f"unknown {kind} '{name}': {hint}")
