"""What a trainer writes beside its weights: what their rewards are measured against, and how they were trained."""

from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model

import trl_dpo_ext
from trl_dpo_ext.reference import policy as reference_policy
from trl_dpo_ext.trainers.model_card import named_locally, training_section
from trl_dpo_ext.trainers.saved_state import REWARD_OPTIONS, describe_source, describe_weights
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

# The rest of them, which the card leaves out
_MORE_OF_THE_OBJECTIVE = (
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "use_weighting",
    "discopop_tau",
)

# Options of the learning rate, beside itself
_SCHEDULE = ("optim", "lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs")


class WithSavedState(WithReference):
    """A trainer whose folders say what their policy's rewards are measured against."""

    # The loss, in LaTeX, for the model card
    equation: str | None = None

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir, "README.md")
            card = path.read_text(encoding="utf-8")
            objective = {name: value for name in _OBJECTIVE if (value := getattr(self.args, name, None))}
            card = training_section(card, type(self).__name__, self.equation, objective, self._saved_state())
            started_from = getattr(self.model.config, "_name_or_path", "")
            card = named_locally(card, started_from, self.args.output_dir)
            path.write_text(card, encoding="utf-8")

    def _saved_state(self) -> dict[str, Any]:
        state = {
            "trainer": type(self).__name__,
            "trl_dpo_ext": trl_dpo_ext.__version__,
            "reference": self._saved_reference(),
            "num_tokens": self._num_tokens,
            "mixed_precision": self.autocast,
            "objective": self._options(*_OBJECTIVE, *_MORE_OF_THE_OBJECTIVE),
            "schedule": self._schedule(),
        }
        state |= self._options(*REWARD_OPTIONS) | describe_weights(self.model)
        return state if self.ld_alpha is None else state | {"ld_alpha": self.ld_alpha}

    def _options(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self.args, name) for name in names if hasattr(self.args, name)}

    def _schedule(self) -> dict[str, Any]:
        args = self.args
        rates: list[Any] = [args.learning_rate]
        # A resumed scheduler has the rate of its checkpoint, and a passed optimizer its own
        if self.lr_scheduler is not None:
            rates = getattr(self.lr_scheduler, "base_lrs", rates)
        elif self.optimizer is not None:
            rates = [group["lr"] for group in self.optimizer.param_groups]
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.data_parallel_ranks
        return {"learning_rate": float(max(rates))} | self._options(*_SCHEDULE) | {"global_batch_size": rows}

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
