"""
A worker of pytest-xdist that is a fork of `forked`'s server.

    python forked_worker.py ADDRESS -u -c CODE

execnet starts it in place of `python -u -c CODE`, and talks to the code by standard input and output.
"""

import os
import sys
from multiprocessing.reduction import DupFd
from typing import Any

import forked


class Pipes:
    """Standard input and output of this process, which a fork takes for its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _take, (DupFd(0), DupFd(1))


def _take(*pipes: Any) -> None:
    for number, pipe in enumerate(pipes):
        os.dup2(pipe.detach(), number)


def run(pipes: None, address: str, code: str) -> None:
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    forked.share_server(address)
    exec(code, {"__name__": "__main__"})


if __name__ == "__main__":
    address, _, _, code = sys.argv[1:]
    forked.share_server(address)
    fork = forked.CONTEXT.Process(target=run, args=(Pipes(), address, code))
    fork.start()
    fork.join()
