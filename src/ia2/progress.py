"""Progress on standard error: bars on a terminal, and one line for each thing done anywhere."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")  # of processes, the first
_bars = Progress(
    TextColumn("{task.description}"),
    BarColumn(20),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}"),
    console=console,
    transient=True,
    disable=not console.is_terminal,
)
Advance = Callable[..., None]


@contextmanager
def step(description: str, total: int) -> Iterator[Advance]:
    """A bar of `total` units, under those already shown; call what it yields as `advance(n, note="")`."""
    first = not _bars.tasks
    if first:
        _bars.start()
    bar = _bars.add_task(description, total=total, note="")
    try:
        yield lambda n=1, note="": _bars.update(bar, advance=n, note=note)
    finally:
        _bars.refresh()  # a short step is over before a bar is drawn by itself
        _bars.remove_task(bar)
        if first:
            _bars.stop()


def say(text: str) -> None:
    """One line for the user, above the bars."""
    console.print(text, markup=False, soft_wrap=True)
