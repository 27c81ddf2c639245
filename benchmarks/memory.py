"""Peak memory of an optimizer step on a CPU, each contender in a process of its own: allocators keep what they had."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.contender import Contender
from benchmarks.measure import GIB


__all__ = ["measure_in_child", "peak_of_step"]

# Blocks from this size on, in bytes, go back to the system as soon as they are freed
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

_MOST_MICRO_BATCHES = 2  # from the second on, activations come on top of gradients


def measure_in_child(arguments: list[str]) -> dict:
    """Runs `python -m benchmarks` with these arguments as a child and returns what it printed last, as JSON."""
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        env=os.environ | _ALLOCATOR,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(f"`python -m benchmarks {' '.join(arguments)}` failed:\n{finished.stderr[-3000:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def peak_of_step(contender: Contender) -> dict[str, float | None]:
    """
    Most resident memory of a step after a first one, without what is there before it (`step_gib`) and with it
    (`peak_gib`), in GiB; `None` where the system is not Linux.
    """
    if not Path("/proc/self/clear_refs").exists():
        return {"step_gib": None, "peak_gib": None}
    _step(contender)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    _step(contender)
    peak = _resident("VmHWM")
    return {"step_gib": (peak - before) / GIB, "peak_gib": peak / GIB}


def _step(contender: Contender) -> None:
    contender.accumulate(0, most=_MOST_MICRO_BATCHES)
    contender.update()


def _resident(name: str) -> int:
    # Bytes; the kernel counts in kB
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
