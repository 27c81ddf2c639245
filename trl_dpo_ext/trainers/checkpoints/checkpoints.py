"""Checkpoints from which a run goes on as if it had not been interrupted, or which it refuses."""

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

# Options that shape a training, beside the objective and the schedule
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
    Writes what a checkpoint of transformers lacks, and reads it again.

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
        """Whether this process holds all weights."""
        return not is_sharded(self.accelerator)

    def warn_of_older(self) -> None:
        """Warns of checkpoints that another run has left where this one writes its own."""
        if self.args.save_strategy != "no" and (older := checkpoints_of(self.args.output_dir)):
            logger.warning(
                f"{self.args.output_dir} holds {older[0].name} of an earlier run; this one starts anew and puts its "
                "checkpoints beside it, and `resume_from_checkpoint=True` takes that of the highest number, whoever "
                "wrote it. Resume the earlier run with `resume_from_checkpoint`, or choose another `output_dir`."
            )

    # Writing

    def make_room(self, folder: Path) -> AbstractContextManager[None]:
        """Removes an older checkpoint of the same name, and explains a full disk while the new one is written."""
        if self.args.should_save and folder.exists():  # else a kill would leave old and new files together
            Path(folder, TRAINER_STATE_NAME).unlink(missing_ok=True)  # without it, it is not whole
            shutil.rmtree(folder)
        return full_disk_explained(folder)

    def write(self, folder: str, state: dict[str, Any], ref_model: nn.Module | None) -> None:
        """Writes the state beside the weights; of a checkpoint, the reference that has moved, too."""
        write_state(folder, state)
        if ref_model is not None and self.args.sync_ref_model and self.is_whole_here:
            self.accelerator.unwrap_model(ref_model).save_pretrained(Path(folder, REFERENCE_FOLDER))

    def write_own(self, folder: str, updates: int, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Writes what each process has of its own: random state, and the log window: updates, loss and metrics."""
        self.epoch_start.save(folder)
        window = {"updates": updates, "loss": loss.cpu(), "metrics": metrics}
        torch.save(window, Path(folder, log_window_file(self.accelerator.process_index)))
        # The main process writes `trainer_state.json` next, which says that the checkpoint is whole
        self.accelerator.wait_for_everyone()

    def progress(self, lines: dict[str, int], rows: Any, token_columns: tuple[str, ...]) -> dict[str, Any]:
        """What a resumed run asks of a checkpoint, of the run log's lines and the training rows, too."""
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
        Returns the state of a checkpoint that the run may resume from.

        Args:
            folder (`str` or `Path`):
                The checkpoint.
            model ([`~torch.nn.Module`]):
                Policy.
            now (`dict`):
                State of this run, with its progress.
            kind (`str`):
                Kind of its reference.
            weights_hash (`str`, *optional*):
                Hash of its reference's weights.

        Raises:
            ValueError: If it would not be the same run.
        """
        check_is_checkpoint(folder, self.accelerator.process_index)
        check_same_weights(model, folder)
        state = read_state(folder)
        check_same_objective(state, now, folder)
        check_same_reference(state, weights_hash, folder)
        check_same_optimizer(state, now, folder)
        if kind == reference_policy.ADAPTER_COPY and not RESUMES_ADAPTER_COPY:
            raise ValueError(
                "This version of transformers does not restore a trained adapter beside its frozen copy. Resume "
                "with transformers>=5.23, or train from the adapter anew."
            )
        if self.args.sync_ref_model and not (self.is_whole_here and Path(folder, REFERENCE_FOLDER).is_dir()):
            raise ValueError(
                f"The reference has moved since the run of {folder} began (`sync_ref_model=True`), and the checkpoint "
                "does not hold it: DeepSpeed, FSDP and older versions of this package do not save it. Start the run "
                "anew, or without `sync_ref_model`."
            )
        for difference in describe_other_options(state, now, folder):
            logger.warning(difference)
        return state

    def of_other_processes(self, folder: str | Path) -> bool:
        """Whether another number of processes wrote a checkpoint."""
        here = self.accelerator.num_processes
        return read_state(folder).get("processes", here) != here

    def load_weights(self, folder: str, policy: Any, load: Callable[[], None]) -> None:
        """
        Loads the policy's weights, and compares them with what the checkpoint holds.

        Args:
            folder (`str`):
                The checkpoint.
            policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                Policy, as accelerate has not wrapped it.
            load (`Callable`):
                Loads them as transformers does.
        """
        if not self.is_whole_here:
            # Parts are loaded under the names and in the form that they are held in, and strictly; comparing them
            # would gather the model
            load()
            return
        with together():  # disks may differ
            if not is_peft_model(policy) and is_converted(policy):
                load_converted(policy, folder)
            else:
                load()
            check_restored(policy, folder)

    def check_best(self, folder: str) -> None:
        """
        Checks that the weights of the best checkpoint can be loaded.

        Raises:
            ValueError: If they cannot, with what is wrong.
        """
        fault = fault_of_weights(folder)
        if fault is not None:
            raise ValueError(
                f"{folder} was the best checkpoint and cannot be loaded: {fault}. The training has ended; take "
                f"another checkpoint of {self.args.output_dir}."
            )

    def load_reference(self, folder: str | Path, ref_model: nn.Module) -> None:
        """Loads the reference that had moved (`sync_ref_model`)."""
        reference = self.accelerator.unwrap_model(ref_model)
        with together():
            load_converted(reference, Path(folder, REFERENCE_FOLDER))
            check_restored(reference, Path(folder, REFERENCE_FOLDER))

    def has_windows(self, folder: str | Path) -> bool:
        """Whether each process finds its own log window in a checkpoint."""
        return read_state(folder).get("save_only_model") is False and not self.of_other_processes(folder)

    def window(self, folder: str | Path) -> dict[str, Any]:
        """This process's log window: the number of its `updates`, their `loss` and their `metrics`."""
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
        Decides where in the data a resumed run goes on, and has that epoch draw the order of its rows again.

        Args:
            folder (`str`):
                The checkpoint.
            found (`tuple[int, int]`):
                Epochs that are done and micro-batches to skip, as transformers finds them.
            updates_per_epoch (`int`):
                Length of an epoch.
            num_epochs (`int`):
                Length of the training, in epochs.
            max_steps (`int`):
                Length of the training, in updates.
            state ([`~transformers.TrainerState`]):
                Where the checkpoint is.
            is_stream (`bool`):
                Whether rows are streamed.
            load_random_state (`Callable`):
                Loads the random state of a checkpoint.

        Returns:
            `tuple[int, int]`: Epochs that are done, and micro-batches to skip.
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
            # transformers takes the whole training for one pass, and counts passes as shares of it
            epochs = int(state.epoch)
            updates = round((state.epoch - epochs) * written["schedule"]["max_steps"])
            batches = updates * self.args.gradient_accumulation_steps
            if has_ended:
                return epochs + 1, 0
        if not has_ended and batches == 0:  # what follows an epoch's last update is still to be done
            epochs, batches = epochs - 1, in_epoch
        if 0 < batches < in_epoch:
            of_process = 0 if self.of_other_processes(folder) else None
            self.epoch_start.start_by(partial(self.epoch_start.load, folder, of_process=of_process))
        else:
            self.epoch_start.start_by(partial(load_random_state, folder))
        return epochs, batches


def _identity_of(rows: Any, token_columns: tuple[str, ...]) -> str | None:
    # In words; streams have no number
    if not isinstance(rows, Dataset):
        return None
    if not set(token_columns) <= set(rows.column_names):  # images
        return f"{len(rows):,}"
    return f"{len(rows):,} (hash {hash_token_ids(rows, token_columns)[:8]})"
