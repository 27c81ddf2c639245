"""A whole frontier: shared parts, runs, the table and what it shows."""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from trl_dpo_ext.frontier.config import FrontierConfig
from trl_dpo_ext.frontier.reward_fit import REWARD_FIT
from trl_dpo_ext.frontier.runs import train_runs
from trl_dpo_ext.frontier.stages import SharedParts
from trl_dpo_ext.frontier.statements import costs, statements
from trl_dpo_ext.frontier.table import read_table, write_table
from trl_dpo_ext.reward_model.files.parts import Parts
from trl_dpo_ext.reward_model.files.run_identity import versions
from trl_dpo_ext.whole_file import write_text


__all__ = ["FrontierFiles", "make_frontier"]


@dataclass(frozen=True)
class FrontierFiles:
    """
    Where a frontier is written.

    Args:
        folder (`Path`):
            Output folder.
    """

    folder: Path

    @property
    def table(self) -> Path:
        """Points of all runs, as CSV."""
        return self.folder / "frontier.csv"

    @property
    def summary(self) -> Path:
        """Runs and their states, sentences, and where it was made."""
        return self.folder / "frontier.json"


def make_frontier(config: FrontierConfig, folder: Path, *, retry: bool = False) -> dict[str, Any]:
    """
    Trains all runs, and writes the table after each of them.

    An interrupted frontier goes on where it stopped when it is made again. A run whose options have changed, or whose
    shared parts have, is trained again, and the others are kept.

    Args:
        config ([`FrontierConfig`]):
            Config.
        folder (`Path`):
            Output folder.
        retry (`bool`, *optional*, defaults to `False`):
            Whether to try runs again that failed.

    Returns:
        `dict`: contents of `frontier.json`.

    Raises:
        ValueError: If a shared part cannot be made, or another run writes the same folder, or there are several
            processes.
    """
    if PartialState().num_processes > 1:
        raise ValueError("A frontier is made by one process. Leave `accelerate launch` out.")
    files = FrontierFiles(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = Parts(files.table)
    with lock.locked():
        try:
            return _make_frontier(config, files, retry)
        finally:
            lock.remove()


def _make_frontier(config: FrontierConfig, files: FrontierFiles, retry: bool) -> dict[str, Any]:
    parts = SharedParts(config, files.folder)
    points = list(parts.reference_points)
    states: list[dict[str, Any]] = []
    for run in train_runs(parts, config.runs, retry=retry):
        points += run.points
        states.append({"run": run.run.name, "folder": run.folder.name, **run.status})
        write_table(files.table, points)
    points = read_table(files.table)
    validation = files.folder / "reward_model" / REWARD_FIT
    summary = {
        "runs": states,
        "statements": statements(points),
        "costs": costs(points),
        "reward_model": json.loads(validation.read_text()) if validation.exists() else None,
        "machine": _machine(),
        "versions": versions(),
    }
    write_text(files.summary, json.dumps(summary, indent=2) + "\n")
    return summary


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return f"{cpu}, {torch.get_num_threads()} threads"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
