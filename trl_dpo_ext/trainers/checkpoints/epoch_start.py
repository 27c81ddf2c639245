"""The random state at the start of an epoch, from which the order of its rows is drawn."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_dpo_ext.trainers.checkpoints.checkpoint_files import epoch_start_file


__all__ = ["EpochStart"]


class EpochStart(TrainerCallback):
    """
    Keeps the random state at which an epoch began, and starts a resumed epoch from it.

    A sampler draws the order of an epoch's rows when the epoch begins. A run that is resumed within the epoch must
    draw the same order, and goes on with the random state of its checkpoint afterwards.

    Args:
        process (`int`): Number of this process, which has random numbers of its own.
    """

    def __init__(self, process: int):
        self.process = process
        self.has_ended = False  # whether the end of the epoch has been reached
        self._state: dict[str, Any] = {}
        self._restores: list[Callable[[], None]] = []

    def save(self, checkpoint: str | Path) -> None:
        """Writes the state, and that of now, into a checkpoint."""
        torch.save({"start": self._state, "now": _get()}, Path(checkpoint, epoch_start_file(self.process)))

    def load(self, checkpoint: str | Path, of_process: int | None = None, at: str = "start") -> None:
        """
        Sets the state that a checkpoint holds, if it has one.

        Args:
            checkpoint (`str` or `Path`): Its folder.
            of_process (`int`, *optional*): Whose state; by default this process's own.
            at (`str`): `"start"` of the epoch, or `"now"`, when the checkpoint was made.
        """
        path = Path(checkpoint, epoch_start_file(self.process if of_process is None else of_process))
        if path.is_file():
            _set(torch.load(path, weights_only=True)[at])

    def start_by(self, restore: Callable[[], None]) -> None:
        """Has the next epoch start by `restore`, of the random state or of what transformers begins anew."""
        self._restores.append(restore)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.has_ended = False
        for restore in self._restores:
            restore()
        self._restores.clear()
        self._state = _get()
        if state.global_step >= state.max_steps:  # resumed at its end
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.has_ended = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._restores.clear()  # where no epoch was left to begin


def _get() -> dict[str, Any]:
    state: Any = np.random.get_state()  # noqa: NPY002 - the one that transformers seeds
    kind, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }


def _set(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
