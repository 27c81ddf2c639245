"""How a trainer writes checkpoints and goes on from them: with the weights, the rows and the log of that point."""

import shutil
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from trl_dpo_ext.compat import RESUMES_ADAPTER_COPY
from trl_dpo_ext.processes import get_logger, together
from trl_dpo_ext.reference import policy as reference_policy
from trl_dpo_ext.reference.cache import hash_token_ids
from trl_dpo_ext.trainers.arguments import check_trainable
from trl_dpo_ext.trainers.checkpoint_files import (
    REFERENCE_FOLDER,
    checkpoints_of,
    fault_of_weights,
    log_window_file,
    newest_whole,
)
from trl_dpo_ext.trainers.epoch_start import EpochStart
from trl_dpo_ext.trainers.full_disk import full_disk_explained
from trl_dpo_ext.trainers.restored_weights import check_restored, is_converted, load_converted
from trl_dpo_ext.trainers.resume_checks import (
    check_is_checkpoint,
    check_same_objective,
    check_same_optimizer,
    check_same_reference,
    check_same_weights,
    describe_other_options,
)
from trl_dpo_ext.trainers.saved_state import read_state, write_state
from trl_dpo_ext.trainers.update_guard import UpdateGuard
from trl_dpo_ext.trainers.with_saved_state import WithSavedState


__all__ = ["WithCheckpoints"]

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


class WithCheckpoints(WithSavedState):
    """A trainer whose resumed runs are the uninterrupted one, or are refused."""

    _guard: UpdateGuard

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._epoch_start = EpochStart(self.accelerator.process_index)
        self.add_callback(self._epoch_start)

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None) -> TrainOutput:
        check_trainable(self.model, self.optimizer)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_whole(self.args.output_dir)
        eval_on_start = self.args.eval_on_start
        if resume_from_checkpoint:
            with together():  # a checkpoint may be missing on one machine
                state = self._checked_state(resume_from_checkpoint)
            self._num_tokens = state.get("num_tokens", 0)
            self._guard.checks_start = False
            self.run_log.go_on_from(resume_from_checkpoint, state.get("run_log", {}))
            self.args.eval_on_start = False
        elif self.args.save_strategy != "no" and (older := checkpoints_of(self.args.output_dir)):
            logger.warning(
                f"{self.args.output_dir} holds {older[0].name} of an earlier run; this one starts anew and puts its "
                "checkpoints beside it, and `resume_from_checkpoint=True` takes that of the highest number, whoever "
                "wrote it. Resume the earlier run with `resume_from_checkpoint`, or choose another `output_dir`."
            )
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.args.eval_on_start = eval_on_start

    def _checked_state(self, folder: str | Path) -> dict[str, Any]:
        # State of a checkpoint that this trainer may resume from
        check_is_checkpoint(folder, self.accelerator.process_index)
        check_same_weights(self.model, folder)
        state, now = read_state(folder), self._saved_state() | self._progress()
        check_same_objective(state, now, folder)
        check_same_reference(state, self.reference_hash, folder)
        check_same_optimizer(state, now, folder)
        if self.reference_kind == reference_policy.ADAPTER_COPY and not RESUMES_ADAPTER_COPY:
            raise ValueError(
                "This version of transformers does not restore a trained adapter beside its frozen copy. Resume "
                "with transformers>=5.23, or train from the adapter anew."
            )
        if self.args.sync_ref_model and not (self._is_whole_here and Path(folder, REFERENCE_FOLDER).is_dir()):
            raise ValueError(
                f"The reference has moved since the run of {folder} began (`sync_ref_model=True`), and the checkpoint "
                "does not hold it: DeepSpeed, FSDP and older versions of this package do not save it. Start the run "
                "anew, or without `sync_ref_model`."
            )
        for difference in describe_other_options(state, now, folder):
            logger.warning(difference)
        return state

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._guard.check_made(self.state.global_step, self.model)
        super().save_model(output_dir, _internal_call)
        if _internal_call:  # a checkpoint, which every process makes
            self.count_tokens()
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        write_state(folder, self._saved_state() | (self._progress() if _internal_call else {}))
        if _internal_call and self.args.sync_ref_model and self._is_whole_here:
            self.accelerator.unwrap_model(self.ref_model).save_pretrained(Path(folder, REFERENCE_FOLDER))

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save and folder.exists():  # else a kill would leave old and new files together
            Path(folder, TRAINER_STATE_NAME).unlink(missing_ok=True)  # without it, it is not whole
            shutil.rmtree(folder)
        with full_disk_explained(folder):
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self._epoch_start.save(output_dir)
        torch.save(self._log_window(), Path(output_dir, log_window_file(self.accelerator.process_index)))
        # The main process writes `trainer_state.json` next, which says that the checkpoint is whole
        self.accelerator.wait_for_everyone()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._of_other_processes(checkpoint):
            # One order of rows for all; transformers would set some of them only
            self._epoch_start.load(checkpoint, of_process=0, at="now")
        else:
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self._is_whole_here:
            with together():  # disks may differ
                self._load_whole(resume_from_checkpoint, model)
        else:
            # Parts are loaded under the names and in the form that they are held in, and strictly; comparing them
            # would gather the model
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_whole(self, folder: str, model: Any = None) -> None:
        policy = self.accelerator.unwrap_model(self.model)
        if not is_peft_model(policy) and is_converted(policy):
            load_converted(policy, folder)
        else:
            super()._load_from_checkpoint(folder, model)
        check_restored(policy, folder)

    def _load_best_model(self) -> None:
        if not self._is_whole_here:
            super()._load_best_model()
            return
        best = self.state.best_model_checkpoint
        logger.info(f"Loading the best model from {best} (score: {self.state.best_metric}).")
        with together():
            fault = fault_of_weights(best)
            if fault is not None:
                raise ValueError(
                    f"{best} was the best checkpoint and cannot be loaded: {fault}. The training has ended; take "
                    f"another checkpoint of {self.args.output_dir}."
                )
            self._load_whole(best)  # transformers overlooks adapters with names of their own

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        epochs, batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            return epochs, batches
        if self.args.sync_ref_model:
            reference, folder = self.accelerator.unwrap_model(self.ref_model), Path(resume_from_checkpoint)
            with together():
                load_converted(reference, folder / REFERENCE_FOLDER)
                check_restored(reference, folder / REFERENCE_FOLDER)
        state, others = read_state(resume_from_checkpoint), self._of_other_processes(resume_from_checkpoint)
        if state.get("save_only_model") is False and not others:  # each process goes on with its own
            self._epoch_start.start_by(partial(self._go_on_with_window, resume_from_checkpoint))
        if self.args.ignore_data_skip:
            return epochs, batches
        has_ended = state.get("epoch_has_ended", True)
        if has_ended and self.state.global_step >= max_steps:
            return num_train_epochs, 0
        in_epoch = num_update_steps_per_epoch * self.args.gradient_accumulation_steps
        if isinstance(self.train_dataset, IterableDataset) and "schedule" in state:
            # transformers takes the whole training for one pass, and counts passes as shares of it
            epochs = int(self.state.epoch)
            updates = round((self.state.epoch - epochs) * state["schedule"]["max_steps"])
            batches = updates * self.args.gradient_accumulation_steps
            if has_ended:
                return epochs + 1, 0
        if not has_ended and batches == 0:  # what follows an epoch's last update is still to be done
            epochs, batches = epochs - 1, in_epoch
        if 0 < batches < in_epoch:
            restore = partial(self._epoch_start.load, of_process=0 if others else None)
        else:
            restore = self._load_rng_state
        self._epoch_start.start_by(partial(restore, resume_from_checkpoint))
        return epochs, batches

    def _of_other_processes(self, checkpoint: str | Path) -> bool:
        # Whether another number of processes wrote a checkpoint
        here = self.accelerator.num_processes
        return read_state(checkpoint).get("processes", here) != here

    def _log_window(self) -> dict[str, Any]:
        # Loss and figures of the updates since the last log, on this process
        updates = self.state.global_step - self._globalstep_last_logged
        return {"updates": updates, "loss": self._tr_loss.cpu(), "figures": self._meters["train"].held()}

    def _go_on_with_window(self, checkpoint: str | Path) -> None:
        window = torch.load(Path(checkpoint, log_window_file(self.accelerator.process_index)), weights_only=True)
        loss = window["loss"].to(self._tr_loss)
        self._tr_loss += loss
        # The mean loss of a run is that of its own updates
        self._total_loss_scalar -= self.accelerator.reduce(loss, reduction="mean").item()
        self._globalstep_last_logged -= window["updates"]
        self._meters["train"].carry(window["figures"])

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """Collects the micro-batches of an update; none for a run that was resumed at its end."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _progress(self) -> dict[str, Any]:
        # What a resumed run asks of a checkpoint
        return {
            "processes": self.accelerator.num_processes,
            "save_only_model": self.args.save_only_model,
            "epoch_has_ended": self._epoch_start.has_ended,
            "run_log": self.run_log.lines,
            "training": self._training_options(),
        }

    def _training_options(self) -> dict[str, Any]:
        return self._options(*_TRAINING) | {"rows": self._rows}

    @cached_property
    def _rows(self) -> str | None:
        # What identifies the training rows; streams have no number
        rows = self.train_dataset
        if not isinstance(rows, Dataset):
            return None
        if not set(self.token_columns) <= set(rows.column_names):  # images
            return f"{len(rows):,}"
        return f"{len(rows):,} (hash {hash_token_ids(rows, self.token_columns)[:8]})"

    @property
    def _is_whole_here(self) -> bool:
        # Whether this process holds all weights
        return not self.is_deepspeed_enabled and not self.is_fsdp_enabled
