"""What the processes of a launch do together: take turns, speak once, and end together where one of them fails."""

import logging
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.logging import MultiProcessAdapter
from accelerate.utils import DistributedType, gather_object
from torch import Tensor


__all__ = [
    "OtherProcessError",
    "check_same",
    "get_logger",
    "is_sharded",
    "main_first",
    "together",
    "worst_of_all_processes",
]


class OtherProcessError(ValueError):
    """Another process failed; the message says which one and why."""


@contextmanager
def together() -> Iterator[None]:
    """
    Ends a block on all processes when it fails on one of them.

    A process that fails alone, on the bad row of its own copy of the data, leaves the others waiting for it: until the
    connection breaks, which does not say why, or until the process group's timeout. Inside the block processes may
    meet only by [`main_first`], so that whoever fails tells the others wherever they wait. All processes must reach
    the block.

    Raises:
        OtherProcessError: On the processes that did not fail themselves, with the message of the first that did.

    Example:

    ```python
    >>> with together():
    ...     rows = [int(text) for text in ["1", "2"]]
    >>> rows
    [1, 2]

    ```
    """
    try:
        yield
    except OtherProcessError:  # has been told
        raise
    except Exception as error:
        _meet(error)
        raise
    _meet()


@contextmanager
def main_first() -> Iterator[None]:
    """
    Lets the main process run the rest of a block before the others, and the first of each other machine before the
    rest of that machine: who comes later reads the cache that they wrote, be it on a shared disk or not.
    """
    state = PartialState()
    turn = 0 if state.is_main_process else 1 if state.is_local_main_process else 2
    for _ in range(turn):
        _meet()
    yield
    for _ in range(turn, 2):
        _meet()


def check_same(count: int, what: str) -> None:
    """
    Checks that all processes count the same; else some would wait for batches that others do not have.

    Raises:
        ValueError: On all processes, with the count of each.
    """
    counts = gather_object([count])
    if len(set(counts)) > 1:
        found = ", ".join(f"{count:,} on process {i}" for i, count in enumerate(counts))
        raise ValueError(f"The processes do not have the same number of {what}: {found}. Give all the same data.")


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether every process may hold only a part of the weights."""
    return accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)


def worst_of_all_processes(accelerator: Accelerator, values: Tensor) -> list[float]:
    """Largest entry of each place of `values`, `(M,)`, over all processes."""
    worst: list[float] = accelerator.gather(values).view(-1, len(values)).amax(dim=0).tolist()
    return worst


class _MainProcessLogger(MultiProcessAdapter):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        # accelerate's puts the number of the process before it, which is always that of the main one
        kwargs.setdefault("stacklevel", 2)
        return msg, kwargs


def get_logger(name: str) -> MultiProcessAdapter:
    """A logger that speaks on the main process only."""
    return _MainProcessLogger(logging.getLogger(name), {})


def _meet(error: Exception | None = None) -> None:
    # Every meeting is the same collective, so a process that fails meets the others wherever they are
    state = PartialState()
    if state.num_processes == 1:
        return
    failure = None
    if error is not None:
        where = f"Process {state.process_index} of {state.num_processes} (on {socket.gethostname()})"
        failure = f"{where} failed with {type(error).__name__}: {error}"
    failures = [found for found in gather_object([failure]) if found is not None]
    if failures and error is None:
        raise OtherProcessError(failures[0])
