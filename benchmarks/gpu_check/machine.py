"""Where a check runs: on a GPU, or for a dry run at tiny sizes on a CPU."""

import gc
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


__all__ = ["HALF", "Machine"]

HALF = torch.bfloat16


@dataclass(frozen=True)
class Machine:
    """
    Device of a check.

    Args:
        dry (`bool`): Whether the check only runs to its end, on a CPU.
        folder (`str`): Folder for what trainers write.
    """

    dry: bool
    folder: str

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def name(self) -> str:
        """Model of the GPU."""
        return "dry run" if self.dry else torch.cuda.get_device_name()

    @property
    def file_name(self) -> str:
        """Its name as part of that of a file."""
        return "-".join(re.findall(r"[a-z0-9.]+", self.name.lower()))

    def size(self, whole: int, tiny: int) -> int:
        """A size on a GPU, and in a dry run."""
        return tiny if self.dry else whole

    def synchronize(self) -> None:
        """Waits for the device."""
        if not self.dry:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Gives memory back that nothing refers to."""
        gc.collect()
        if not self.dry:
            torch.cuda.empty_cache()

    def seconds(self, call: Callable[[], Any]) -> float:
        """Seconds of one call."""
        self.synchronize()
        start = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - start

    def milliseconds(self, call: Callable[[], Any], repeats: int = 20) -> float:
        """Median of some calls, after three that are not timed; one call in a dry run."""
        for _ in range(self.size(3, 0)):
            call()
        return 1e3 * statistics.median(self.seconds(call) for _ in range(self.size(repeats, 1)))
