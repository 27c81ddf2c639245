"""Checkpoints of a run: what is saved in addition to transformers' files, and how a run resumes."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from trl_dpo_ext.compat import RESUMES_ADAPTER_COPY
from trl_dpo_ext.processes import get_logger, is_sharded, together
from trl_dpo_ext.reference import policy as reference_policy
from trl_dpo_ext.reference.cache import hash_token_ids
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.checkpoints.checkpoint_files import (
    REFERENCE_FOLDER,
    checkpoints_of,
    fault_of_weights,
    log_window_file,
)
from trl_dpo_ext.trainers.checkpoints.described_run import options_of
from trl_dpo_ext.trainers.checkpoints.disk_full import full_disk_explained
from trl_dpo_ext.trainers.checkpoints.epoch_start import EpochStart
from trl_dpo_ext.trainers.checkpoints.restored_weights import check_restored, is_converted, load_converted
from trl_dpo_ext.trainers.checkpoints.resume_checks import (
    check_is_checkpoint,
    check_same_objective,
    check_same_optimizer,
    check_same_reference,
    check_same_weights,
    describe_other_options,
)
from trl_dpo_ext.trainers.checkpoints.saved_state import read_state, write_state


__all__ = ["Checkpoints"]

logger = get_logger(__name__)

# Options that affect training, in addition to the objective and the schedule
_TRAINING = (
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "disable_dropout",
    "neftune_noise_alpha",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
)


class Checkpoints:
    """
    Saves what the checkpoints of transformers lack, and loads it again.

    Args:
        args ([`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`]):
            Options of the trainer.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator.
    """

    def __init__(self, args: BaseDPOConfig, accelerator: Accelerator):
        self.args = args
        self.accelerator = accelerator
        self.epoch_start = EpochStart(accelerator.process_index)
        self._rows: str | None = None  # identity of the training rows, which do not change

    @property
    def is_whole_here(self) -> bool:
        """Whether this process has all weights."""
        return not is_sharded(self.accelerator)

    def warn_of_older(self) -> None:
        """Warns of checkpoints of another run in the output folder."""
        if self.args.save_strategy != "no" and (older := checkpoints_of(self.args.output_dir)):
            logger.warning(
                f"{self.args.output_dir} has {older[0].name} of an earlier run, but this run starts again "
                "and saves its checkpoints to the same folder. `resume_from_checkpoint=True` uses the highest number "
                "of any run. Resume the earlier run with `resume_from_checkpoint`, or choose another `output_dir`."
            )

    # Writing

    def make_room(self, folder: Path) -> AbstractContextManager[None]:
        """Deletes an existing checkpoint of the same name, and explains a full disk while the new one is written."""
        if self.args.should_save and folder.exists():  # otherwise an interrupted run could mix old and new files
            Path(folder, TRAINER_STATE_NAME).unlink(missing_ok=True)  # marks it as incomplete
            shutil.rmtree(folder)
        return full_disk_explained(folder)

    def write(self, folder: str, state: dict[str, Any], ref_model: nn.Module | None) -> None:
        """Saves the state with the weights and, in a checkpoint, a reference that has changed."""
        write_state(folder, state)
        if ref_model is not None and self.args.sync_ref_model and self.is_whole_here:
            self.accelerator.unwrap_model(ref_model).save_pretrained(Path(folder, REFERENCE_FOLDER))

    def write_own(self, folder: str, updates: int, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Saves the random state and the log window (updates, loss and metrics) of each process."""
        self.epoch_start.save(folder)
        window = {"updates": updates, "loss": loss.cpu(), "metrics": metrics}
        torch.save(window, Path(folder, log_window_file(self.accelerator.process_index)))
        # Then the main process writes `trainer_state.json`, which marks the checkpoint as complete
        self.accelerator.wait_for_everyone()

    def progress(self, lines: dict[str, int], rows: Any, token_columns: tuple[str, ...]) -> dict[str, Any]:
        """Returns the state that a resumed run checks, including the lines of the run log and the training rows."""
        if self._rows is None:
            self._rows = _identity_of(rows, token_columns)
        return {
            "processes": self.accelerator.num_processes,
            "save_only_model": self.args.save_only_model,
            "epoch_has_ended": self.epoch_start.has_ended,
            "run_log": lines,
            "training": options_of(self.args, *_TRAINING) | {"rows": self._rows},
        }

    # Reading

    def checked_state(
        self, folder: str | Path, model: nn.Module, now: dict[str, Any], kind: str, weights_hash: str | None
    ) -> dict[str, Any]:
        """
        Returns the state of a checkpoint if the run may resume from it.

        Args:
            folder (`str` or `Path`):
                Folder of the checkpoint.
            model ([`~torch.nn.Module`]):
                Policy.
            now (`dict`):
                State of this run, with its progress.
            kind (`str`):
                Kind of the reference.
            weights_hash (`str`, *optional*):
                Hash of the weights of the reference.

        Raises:
            ValueError: If the run would not be the same.
        """
        check_is_checkpoint(folder, self.accelerator.process_index)
        check_same_weights(model, folder)
        state = read_state(folder)
        check_same_objective(state, now, folder)
        check_same_reference(state, weights_hash, folder)
        check_same_optimizer(state, now, folder)
        if kind == reference_policy.ADAPTER_COPY and not RESUMES_ADAPTER_COPY:
            raise ValueError(
                "This version of transformers does not restore a trained adapter that has a frozen copy. Resume with "
                "transformers>=5.23, or start a new run from the adapter."
            )
        if self.args.sync_ref_model and not (self.is_whole_here and Path(folder, REFERENCE_FOLDER).is_dir()):
            raise ValueError(
                f"The reference has changed since the run of {folder} started (`sync_ref_model=True`), but the "
                "checkpoint does not contain it: DeepSpeed, FSDP and older versions of this package do not save it. "
                "Start the run again, or without `sync_ref_model`."
            )
        for difference in describe_other_options(state, now, folder):
            logger.warning(difference)
        return state

    def of_other_processes(self, folder: str | Path) -> bool:
        """Whether a checkpoint was saved by another number of processes."""
        here = self.accelerator.num_processes
        return read_state(folder).get("processes", here) != here

    def load_weights(self, folder: str, policy: Any, load: Callable[[], None]) -> None:
        """
        Loads the weights of the policy, and compares them with the checkpoint.

        Args:
            folder (`str`):
                Folder of the checkpoint.
            policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                Policy, without accelerate's wrapper.
            load (`Callable`):
                Loads the weights as in transformers.
        """
        if not self.is_whole_here:
            # Sharded weights are loaded strictly, under the names and in the form of the model. A comparison would
            # gather the model
            load()
            return
        with together():  # the disks of machines may differ
            if not is_peft_model(policy) and is_converted(policy):
                load_converted(policy, folder)
            else:
                load()
            check_restored(policy, folder)

    def check_best(self, folder: str) -> None:
        """
        Checks that the weights of the best checkpoint can be loaded.

        Raises:
            ValueError: If they cannot be loaded. The message has the reason.
        """
        fault = fault_of_weights(folder)
        if fault is not None:
            raise ValueError(
                f"{folder} was the best checkpoint, but it cannot be loaded: {fault}. The training has ended. Use "
                f"another checkpoint of {self.args.output_dir}."
            )

    def load_reference(self, folder: str | Path, ref_model: nn.Module) -> None:
        """Loads a reference that has changed (`sync_ref_model`)."""
        reference = self.accelerator.unwrap_model(ref_model)
        with together():
            load_converted(reference, Path(folder, REFERENCE_FOLDER))
            check_restored(reference, Path(folder, REFERENCE_FOLDER))

    def has_windows(self, folder: str | Path) -> bool:
        """Whether each process finds its log window in a checkpoint."""
        return read_state(folder).get("save_only_model") is False and not self.of_other_processes(folder)

    def window(self, folder: str | Path) -> dict[str, Any]:
        """Returns the log window of this process: its number of `updates`, their `loss` and their `metrics`."""
        path = Path(folder, log_window_file(self.accelerator.process_index))
        window: dict[str, Any] = torch.load(path, weights_only=True)
        return window

    def start_of_epoch(
        self,
        folder: str,
        found: tuple[int, int],
        *,
        updates_per_epoch: int,
        num_epochs: int,
        max_steps: int,
        state: TrainerState,
        is_stream: bool,
        load_random_state: Callable[[str], None],
    ) -> tuple[int, int]:
        """
        Returns where a resumed run continues in the data, and makes that epoch use the same order of rows.

        Args:
            folder (`str`):
                Folder of the checkpoint.
            found (`tuple[int, int]`):
                Number of finished epochs and of micro-batches to skip, according to transformers.
            updates_per_epoch (`int`):
                Number of updates of an epoch.
            num_epochs (`int`):
                Number of epochs of the training.
            max_steps (`int`):
                Number of updates of the training.
            state ([`~transformers.TrainerState`]):
                State of the checkpoint.
            is_stream (`bool`):
                Whether rows are streamed.
            load_random_state (`Callable`):
                Loads the random state of a checkpoint.

        Returns:
            `tuple[int, int]`: Number of finished epochs, and of micro-batches to skip.
        """
        epochs, batches = found
        written = read_state(folder)
        if self.args.ignore_data_skip:
            return epochs, batches
        has_ended = written.get("epoch_has_ended", True)
        if has_ended and state.global_step >= max_steps:
            return num_epochs, 0
        in_epoch = updates_per_epoch * self.args.gradient_accumulation_steps
        if is_stream and "schedule" in written:
            # transformers treats the whole training as one pass, and counts passes as shares of it
            epochs = int(state.epoch)
            updates = round((state.epoch - epochs) * written["schedule"]["max_steps"])
            batches = updates * self.args.gradient_accumulation_steps
            if has_ended:
                return epochs + 1, 0
        if not has_ended and batches == 0:  # the end of the epoch has not been processed yet
            epochs, batches = epochs - 1, in_epoch
        if 0 < batches < in_epoch:
            of_process = 0 if self.of_other_processes(folder) else None
            self.epoch_start.start_by(partial(self.epoch_start.load, folder, of_process=of_process))
        else:
            self.epoch_start.start_by(partial(load_random_state, folder))
        return epochs, batches


def _identity_of(rows: Any, token_columns: tuple[str, ...]) -> str | None:
    # As text; a streaming dataset has no number of rows
    if not isinstance(rows, Dataset):
        return None
    if not set(token_columns) <= set(rows.column_names):  # images
        return f"{len(rows):,}"
    return f"{len(rows):,} (hash {hash_token_ids(rows, token_columns)[:8]})"
