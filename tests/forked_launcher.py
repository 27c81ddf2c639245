"""
`accelerate launch` and `torchrun` whose processes are forks of them, which need not import torch and TRL again.

    python forked_launcher.py accelerate-launch [OPTIONS OF ACCELERATE LAUNCH] -m MODULE ...
    python forked_launcher.py torchrun [OPTIONS OF TORCHRUN] FILE ...

`forked.start` starts it.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from accelerate.commands import launch
from forked import run
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler


class Fork:
    """What accelerate and `torchrun` use of `subprocess.Popen`, of a program that Python runs."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str], **options: Any):
        words = [word for word in args[1:] if word != "-u"]
        self._process = multiprocessing.get_context("fork").Process(target=_run_in_a_group, args=(words, env))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0.0)
        return self.returncode


def _run_in_a_group(words: list[str], env: Mapping[str, str]) -> None:
    os.setsid()  # `torchrun` ends the group
    run(words, env, os.getcwd())


if __name__ == "__main__":
    # Theirs alone: the program itself starts others
    launch.subprocess = SimpleNamespace(Popen=Fork, CalledProcessError=subprocess.CalledProcessError)
    subprocess_handler.Popen = Fork
    sys.argv = sys.argv[1:]
    {"accelerate-launch": launch.main, "torchrun": torchrun.main}[sys.argv[0]]()
