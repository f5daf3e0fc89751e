"""One program on several processes, as `accelerate launch` starts it.

All of them do the same in step; of what is written together the main one writes, and it alone speaks (`ia2.files`,
`ia2.progress`). Shared out are the teacher's passes, the rows of a batch, and those of an evaluation.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env  # type: ignore[import-untyped]

from ia2.errors import IA2Error

Row = TypeVar("Row")
Result = TypeVar("Result")


def processes() -> PartialState:
    """This process among the others, and its device.

    Raises:
        IA2Error: a package is missing, such as DeepSpeed.
    """
    try:
        return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    except ImportError as error:
        raise IA2Error(f"accelerate cannot start as it is configured: {error}") from error


def shares_weights() -> bool:
    """Whether every process shall hold a part of the weights: `accelerate launch --use_fsdp`."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP")) and processes().num_processes > 1


def is_shared(model: Any) -> bool:
    """Whether every process holds a part of each weight of this model, so that all must make each pass together."""
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def shared_out(rows: Sequence[Row], work: Callable[[Sequence[Row]], Sequence[Result]]) -> list[Result]:
    """What `work` makes of the rows, each process of its share; all of it on every process.

    Where processes share the weights, none can compute without the others: each does all rows.
    """
    if shares_weights():
        return list(work(rows))
    with processes().split_between_processes(list(rows)) as share:
        return list(gather_object(list(work(share))))


def of_each(value: Result) -> list[Result]:
    """Every process's value, on all of them."""
    return list(gather_object([value]))


def of_main(value: Result) -> Result:
    """The main process's value, on all of them."""
    [value] = broadcast_object_list([value])
    return value


def most(n: int) -> int:
    """The largest of the processes' numbers."""
    return max(of_each(n))
