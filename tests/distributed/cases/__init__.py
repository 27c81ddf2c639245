"""
The cases that `run_case.py` runs, in this order, on one process or on several.

A launch runs many, since starting Python, torch and TRL costs more than a case.
"""

# ruff: noqa: I001

# Sharded weights come last: FSDP leaves its settings in the environment
from cases import training, rankings, checkpoints, evaluation, rl, cache, failures, sharded, zero  # noqa: F401
from launch import AFTER_ANOTHER, CASES, FATAL, IN_FLOAT32, TRAININGS, TWO_PROCESSES_ONLY, ZERO


__all__ = ["CASES", "FATAL", "IN_FLOAT32", "TRAININGS", "ZERO", "cases_for"]


def cases_for(num_processes: int) -> list[str]:
    """The cases that a launch can run one after the other."""
    left_out = ZERO + FATAL + AFTER_ANOTHER + (TWO_PROCESSES_ONLY if num_processes == 1 else [])
    return [name for name in CASES if name not in left_out]
