"""What a trainer writes beside its weights, and checks when it resumes."""

from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, get_last_checkpoint

import trl_dpo_ext
from trl_dpo_ext.compat import RESUMES_ADAPTER_COPY
from trl_dpo_ext.reference import policy as reference_policy
from trl_dpo_ext.trainers.full_disk import full_disk_explained
from trl_dpo_ext.trainers.model_card import training_section
from trl_dpo_ext.trainers.saved_state import (
    check_same_reference,
    describe_source,
    describe_weights,
    read_state,
    write_state,
)
from trl_dpo_ext.trainers.update_guard import UpdateGuard
from trl_dpo_ext.trainers.with_reference import WithReference


__all__ = ["WithSavedState"]

# Options that shape a loss, for the model card
_OBJECTIVE = (
    "loss_type",
    "loss_weights",
    "label_smoothing",
    "reference_free",
    "top_m",
    "alpha",
    "unlikelihood_form",
    "loss_reduction",
)


class WithSavedState(WithReference):
    """A trainer whose folders say what their policy's rewards are measured against, and that resumes only there."""

    _guard: UpdateGuard

    # The loss, in LaTeX, for the model card
    equation: str | None = None

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None) -> TrainOutput:
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if folder:
            state = read_state(folder)
            check_same_reference(state, self.reference_hash, folder)
            if self.reference_kind == reference_policy.ADAPTER_COPY and not RESUMES_ADAPTER_COPY:
                raise ValueError(
                    "This version of transformers does not restore a trained adapter beside its frozen copy. Resume "
                    "with transformers>=5.23, or train from the adapter anew."
                )
            self._num_tokens = state.get("num_tokens", 0)
            self._guard.checks_start = False
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if _internal_call:  # a checkpoint, which every process makes
            self.count_tokens()
        if self.args.should_save:
            write_state(output_dir or self.args.output_dir, self._saved_state())

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with full_disk_explained(folder):
            super()._save_checkpoint(model, trial)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir, "README.md")
            card = path.read_text(encoding="utf-8")
            objective = {name: value for name in _OBJECTIVE if (value := getattr(self.args, name, None))}
            card = training_section(card, type(self).__name__, self.equation, objective, self._saved_state())
            path.write_text(card, encoding="utf-8")

    def _saved_state(self) -> dict[str, Any]:
        options = (
            "beta",
            "tokenization",
            "max_length",
            "max_prompt_length",
            "prompt_truncation_mode",
            "truncation_mode",
        )
        state = {
            "trainer": type(self).__name__,
            "trl_dpo_ext": trl_dpo_ext.__version__,
            "reference": self._saved_reference(),
            "num_tokens": self._num_tokens,
            "mixed_precision": self.accelerator.mixed_precision,
        }
        state |= {name: getattr(self.args, name) for name in options} | describe_weights(self.model)
        return state if self.ld_alpha is None else state | {"ld_alpha": self.ld_alpha}

    def _saved_reference(self) -> dict[str, Any]:
        reference = {"kind": self.reference_description, "hash": self.reference_hash}
        if self.reference_kind in (reference_policy.NONE, reference_policy.COLUMNS):
            return reference
        if self.args.sync_ref_model:  # it has moved away from what it was loaded from
            return reference | {"synced": True}
        # DeepSpeed's engine has a `config` of its own
        model = self.accelerator.unwrap_model(self.model if self.ref_model is None else self.ref_model)
        # The name of an adapter used as `ref_model` is not known, only that of its base model
        unnamed = self.reference_kind == reference_policy.EXPLICIT and is_peft_model(model)
        source = {} if unnamed else describe_source(model)
        return reference | describe_weights(model) | source
