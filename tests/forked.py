"""
Python programs in processes of their own, which need not import torch, transformers and TRL again.

Those imports take ten seconds of a processor in every new interpreter, far longer than what a test runs in it.
`multiprocessing`'s forkserver imports them once, trains nothing, and every program is a fork of it. If all the tests
are run, the process that hands them to workers starts it, and the workers are forks, too (`forked_worker.py`).
"""

import ctypes
import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from import_costs import without_devices


LAUNCHER = str(Path(__file__).with_name("forked_launcher.py"))
WORKER = str(Path(__file__).with_name("forked_worker.py"))
CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["forked_imports"])


@dataclass
class Program:
    """
    A Python program in a process of its own.

    Args:
        process (`ForkServerProcess`): The process.
        log (`Path`): What it prints, standard output and errors together.
    """

    process: ForkServerProcess
    log: Path

    def wait(self, seconds: float) -> int:
        """Its exit status; -9 if it was killed, also because it took longer."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")


def start(
    words: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    namespace: str | None = None,
) -> Program:
    """
    Starts a program.

    Args:
        words (`list[str]`): What one writes after `python`: `-m`, a module and its arguments, or a file and its own.
        log (`Path`): File for what it prints.
        env (`dict`, *optional*): Environment, beside that of the tests.
        cwd (`Path`, *optional*): Folder it runs in; that of the tests by default.
        namespace (`str`, *optional*): Network namespace that it runs in, as by `ip netns exec`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    server_address()
    environment = dict(os.environ) | dict(env or {})
    process = CONTEXT.Process(
        target=_run, args=(list(words), str(log), environment, str(cwd or Path.cwd()), namespace)
    )
    process.start()
    return Program(process, log)


def free_port() -> str:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start_ranks(num_processes: int, words: Sequence[str], folder: Path, **arguments: Any) -> list[Program]:
    """Starts a program on several processes of one machine, told what `torchrun` tells them."""
    shared = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    env = arguments.pop("env", {}) | (shared if num_processes > 1 else {})
    ranks = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {} for rank in range(num_processes)
    ]
    return [start(words, folder / f"log{rank}", env=env | own, **arguments) for rank, own in enumerate(ranks)]


def wait_for_all(programs: Sequence[Program], seconds: float) -> list[int]:
    """Exit statuses. As under `torchrun`, a process that fails ends the others."""
    end = time.monotonic() + seconds
    while any(program.process.exitcode is None for program in programs) and time.monotonic() < end:
        if any(program.process.exitcode for program in programs):
            end = min(end, time.monotonic() + 30)  # the others find out by themselves, as a rule
        time.sleep(0.05)
    return [program.wait(0) for program in programs]


@cache
def server_address() -> str:
    """Where the server of this process listens, which is started first if it does not run."""
    # It finds modules where a new interpreter does
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    return str(vars(forkserver._forkserver)["_forkserver_address"])


class _ServerOfAnother(forkserver.ForkServer):
    def __init__(self, address: str):
        super().__init__()
        self._forkserver_address = address
        self._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)  # the other process holds the pipe

    def ensure_running(self) -> None:
        resource_tracker.ensure_running()


def share_server(address: str) -> None:
    """Programs of this process are forks of the server of another, which lives longer."""
    forkserver._forkserver = _ServerOfAnother(address)
    forkserver.ensure_running = forkserver._forkserver.ensure_running
    forkserver.connect_to_new_process = forkserver._forkserver.connect_to_new_process


def follow_environment() -> None:
    """To be called in a fork whose environment is not its server's, which was read by imports."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = Path(os.environ["HF_DATASETS_CACHE"])


def run(words: Sequence[str], env: Mapping[str, str], cwd: str) -> None:
    """Runs a program in this process, which is a fork, as in a new interpreter."""
    import torch

    os.environ.clear()
    os.environ.update(env)
    follow_environment()
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", "1")))
    without_devices()
    if words[0] == "-m":
        sys.argv = list(words[1:])
        sys.path.insert(0, cwd)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def _run(words: list[str], log: str, env: dict[str, str], cwd: str, namespace: str | None) -> None:
    # In the new process
    if namespace is not None:
        _enter(namespace)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(cwd)
    run(words, env, cwd)


def _enter(namespace: str) -> None:
    # `os.setns` is new in Python 3.12
    system = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if system.setns(file.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
