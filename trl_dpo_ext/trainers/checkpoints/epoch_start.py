"""Random state at the start of an epoch, which determines the order of its rows."""

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
    Records the random state at the start of an epoch, and starts a resumed epoch with it.

    The order of an epoch's rows is drawn at its start. A run resumed within an epoch must draw the same order, and
    then continues with the random state of the checkpoint.

    Args:
        process (`int`): Index of this process, which has its own random state.
    """

    def __init__(self, process: int):
        self.process = process
        self.has_ended = False  # whether the end of the epoch has been reached
        self._state: dict[str, Any] = {}
        self._restores: list[Callable[[], None]] = []

    def save(self, checkpoint: str | Path) -> None:
        """Saves this state and the current one in a checkpoint."""
        torch.save({"start": self._state, "now": _get()}, Path(checkpoint, epoch_start_file(self.process)))

    def load(self, checkpoint: str | Path, of_process: int | None = None, at: str = "start") -> None:
        """
        Restores a random state of a checkpoint, if it has one.

        Args:
            checkpoint (`str` or `Path`): Folder of the checkpoint.
            of_process (`int`, *optional*): Process whose state is restored. Default: this process.
            at (`str`): `"start"` of the epoch, or `"now"` (when the checkpoint was saved).
        """
        path = Path(checkpoint, epoch_start_file(self.process if of_process is None else of_process))
        if path.is_file():
            _set(torch.load(path, weights_only=True)[at])

    def start_by(self, restore: Callable[[], None]) -> None:
        """Calls `restore` at the start of the next epoch, to set the random state or what transformers resets."""
        self._restores.append(restore)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.has_ended = False
        for restore in self._restores:
            restore()
        self._restores.clear()
        self._state = _get()
        if state.global_step >= state.max_steps:  # resumed at the end of training
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.has_ended = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._restores.clear()  # if no epoch was left to start


def _get() -> dict[str, Any]:
    state: Any = np.random.get_state()  # noqa: NPY002 - the generator that transformers seeds
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
