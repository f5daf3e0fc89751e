"""Where memory runs out, what is done at once is halved."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size  # type: ignore[import-untyped]

from ia2.processes import processes
from ia2.progress import say

T = TypeVar("T")
U = TypeVar("U")


def in_halves(batches: Iterable[Sequence[U]], work: Callable[[Sequence[U]], T]) -> Iterator[tuple[Sequence[U], T]]:
    """Do `work` on each batch; where memory runs out, that batch and those to come of its size are halved.

    Yields:
        The batches that were done, and what came of each.

    Raises:
        RuntimeError: torch's, where memory runs out for a batch of one.
    """
    pending = deque(batches)
    while pending:
        batch = pending.popleft()
        try:
            found = work(batch)
        except RuntimeError as error:
            if len(batch) == 1 or not ran_out(error):
                raise
        else:
            yield batch, found
            continue
        tidy()
        say(f"out of memory with {len(batch)} rows at once; now half as many")
        pending = deque(part for of in (batch, *pending) for part in (halves(of) if len(of) >= len(batch) else [of]))


def ran_out(error: Exception) -> bool:
    """Whether this is what torch raises where memory runs out; of several processes none can do with less alone."""
    return bool(should_reduce_batch_size(error)) and processes().num_processes == 1


def tidy() -> None:
    """Give back what nobody holds; to be called behind an `except`, in which the error holds its tensors."""
    clear_device_cache(garbage_collection=True)


def free(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return int(psutil.virtual_memory().available)


def halves(batch: Sequence[U]) -> Iterator[Sequence[U]]:
    """One or two parts, none of them empty."""
    middle = (len(batch) + 1) // 2
    return (half for half in (batch[:middle], batch[middle:]) if half)
