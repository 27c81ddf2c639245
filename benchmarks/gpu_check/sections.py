"""Runs sections one after the other, each with a deadline, and writes what they found after each of them."""

import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.machine import Machine


__all__ = ["Found", "Section", "run_sections"]

# What a section found, in values that JSON has
Found = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """
    A section of the check.

    Args:
        name (`str`): Name in the results.
        limit (`int`): Seconds that it may take.
        run (`Callable`): Puts what it finds into a dict, of which what is there at the deadline is kept. A section
            that checks correctness puts `passed` into it.
        packages (`tuple[str, ...]`): What it needs besides torch and transformers.
    """

    name: str
    limit: int
    run: Callable[[Machine, Found], None]
    packages: tuple[str, ...] = ()


class _OutOfTime(BaseException):
    # Not an `Exception`: sections catch those of a contender and go on
    pass


def run_sections(sections: Sequence[Section], machine: Machine, path: Path, total: float, head: Found) -> Found:
    """
    Runs sections and writes their results to a file after each.

    Args:
        sections (`Sequence[Section]`):
            Sections, in order.
        machine ([`~benchmarks.gpu_check.machine.Machine`]):
            Device.
        path (`Path`):
            File for the results.
        total (`float`):
            Seconds for all of them. A section whose limit goes beyond it is left out, with the reason.
        head (`dict`):
            What stands before the sections in the file.

    Returns:
        `dict`: What is in the file.
    """
    results: Found = head | {"sections": {}}
    start = time.monotonic()
    for section in sections:
        found: Found = {}
        results["sections"][section.name] = found
        left = total - (time.monotonic() - start)
        missing = [package for package in section.packages if find_spec(package) is None]
        if missing:
            found |= {"status": "skipped", "reason": f"not installed: {', '.join(missing)}"}
        elif section.limit > left:
            found |= {"status": "skipped", "reason": f"{left:.0f} s left, and it may take {section.limit} s"}
        else:
            _run(section, machine, found)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def _run(section: Section, machine: Machine, found: Found) -> None:
    start = time.monotonic()
    found["status"] = "done"
    try:
        with _deadline(section.limit):
            section.run(machine, found)
    except _OutOfTime:
        found |= {"status": "out of time", "reason": f"more than {section.limit} s"}
    except Exception:
        found |= {"status": "failed", "reason": traceback.format_exc()[-3000:]}
    finally:
        machine.free()
    found["seconds"] = round(time.monotonic() - start, 1)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
