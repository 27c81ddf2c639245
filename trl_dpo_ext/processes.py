"""Cooperation of the processes of a launch: taking turns, logging once, and stopping together after an error."""

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
    """Another process failed. The message says which one and why."""


@contextmanager
def together() -> Iterator[None]:
    """
    Stops all processes if the block fails on one of them.

    If a process fails alone, for example on an invalid row of its own copy of the data, the others would wait for it
    until the connection breaks or the process group times out. Inside the block, processes may only synchronize with
    [`main_first`], so that a process that fails can notify the others wherever they wait. All processes must reach the
    block.

    Raises:
        OtherProcessError: On the processes that did not fail themselves, with the message of the first that failed.

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
    except OtherProcessError:  # the others know already
        raise
    except Exception as error:
        _meet(error)
        raise
    _meet()


@contextmanager
def main_first() -> Iterator[None]:
    """
    Runs the rest of a block first on the main process, and then first on one process of each other machine, so that
    the others read the cache that these wrote, with or without a shared disk.
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
    Checks that all processes have the same count. Otherwise some would wait for batches that others do not have.

    Raises:
        ValueError: On all processes, with the count of each process.
    """
    counts = gather_object([count])
    if len(set(counts)) > 1:
        found = ", ".join(f"{count:,} on process {i}" for i, count in enumerate(counts))
        raise ValueError(f"The processes do not have the same number of {what}: {found}. Use the same data on all.")


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether a process may have only a part of the weights."""
    return accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)


def worst_of_all_processes(accelerator: Accelerator, values: Tensor) -> list[float]:
    """Returns the largest value over all processes for each entry of `values`, `(M,)`."""
    worst: list[float] = accelerator.gather(values).view(-1, len(values)).amax(dim=0).tolist()
    return worst


class _MainProcessLogger(MultiProcessAdapter):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        # accelerate adds the index of the process, which is always that of the main process here
        kwargs.setdefault("stacklevel", 2)
        return msg, kwargs


def get_logger(name: str) -> MultiProcessAdapter:
    """Returns a logger that logs only on the main process."""
    return _MainProcessLogger(logging.getLogger(name), {})


def _meet(error: Exception | None = None) -> None:
    # Always the same collective, so that a process that fails reaches the others wherever they wait
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
