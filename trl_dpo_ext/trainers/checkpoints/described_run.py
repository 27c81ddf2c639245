"""Description of a run for its saved state and its model card: reference, objective and schedule."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model

import trl_dpo_ext
from trl_dpo_ext.reference.policy import EXPLICIT
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.checkpoints.model_card import named_locally, training_section
from trl_dpo_ext.trainers.checkpoints.saved_state import REWARD_OPTIONS, describe_source, describe_weights
from trl_dpo_ext.trainers.forward.precision import autocast_of


__all__ = ["carry_window", "complete_card", "describe_run", "options_of"]

# Options of the loss that are shown in the model card
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

# Other options of the loss
_MORE_OF_THE_OBJECTIVE = (
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "use_weighting",
    "discopop_tau",
)

# Options of the learning rate, except the rate itself
_SCHEDULE = ("optim", "lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs")


def describe_run(trainer: Any) -> dict[str, Any]:
    """Describes the rewards and the objective of a trainer for [`write_state`]."""
    args = trainer.args
    state = {
        "trainer": type(trainer).__name__,
        "trl_dpo_ext": trl_dpo_ext.__version__,
        "reference": _reference(trainer),
        "num_tokens": trainer.metrics.num_tokens,
        "mixed_precision": autocast_of(trainer.accelerator),
        "objective": options_of(args, *_OBJECTIVE, *_MORE_OF_THE_OBJECTIVE),
        "schedule": _schedule(args, trainer.optimizer, trainer.lr_scheduler),
    }
    state |= options_of(args, *REWARD_OPTIONS) | describe_weights(trainer.model)
    return state if trainer.ld_alpha is None else state | {"ld_alpha": trainer.ld_alpha}


def _reference(trainer: Any) -> dict[str, Any]:
    # Contains what is needed to load it again
    reference = trainer.reference
    described: dict[str, Any] = {"kind": reference.description, "hash": reference.hash_of(trainer.model)}
    if not reference.has_model:
        return described
    if trainer.args.sync_ref_model:  # it has changed since it was loaded
        return described | {"synced": True}
    # DeepSpeed's engine has its own `config`
    model = trainer.accelerator.unwrap_model(trainer.model if trainer.ref_model is None else trainer.ref_model)
    # If an adapter is used as `ref_model`, only the name of its base model is known
    unnamed = reference.kind == EXPLICIT and is_peft_model(model)
    source = {} if unnamed else describe_source(model)
    return described | describe_weights(model) | source


def complete_card(trainer: Any) -> None:
    """Adds the training to the model card of TRL, and replaces local paths."""
    args = trainer.args
    path = Path(args.output_dir, "README.md")
    card = path.read_text(encoding="utf-8")
    objective = {name: value for name in _OBJECTIVE if (value := getattr(args, name, None))}
    card = training_section(card, type(trainer).__name__, trainer.equation, objective, describe_run(trainer))
    card = named_locally(card, getattr(trainer.model.config, "_name_or_path", ""), args.output_dir)
    path.write_text(card, encoding="utf-8")


def options_of(args: BaseDPOConfig, *names: str) -> dict[str, Any]:
    """Returns those of the options that the config has."""
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _schedule(args: BaseDPOConfig, optimizer: torch.optim.Optimizer | None, lr_scheduler: Any) -> dict[str, Any]:
    rates: list[Any] = [args.learning_rate]
    # A resumed scheduler has the rate of its checkpoint, and an optimizer from the user its own
    if lr_scheduler is not None:
        rates = getattr(lr_scheduler, "base_lrs", rates)
    elif optimizer is not None:
        rates = [group["lr"] for group in optimizer.param_groups]
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.data_parallel_ranks
    return {"learning_rate": float(max(rates))} | options_of(args, *_SCHEDULE) | {"global_batch_size": rows}


def carry_window(trainer: Any, checkpoint: str) -> None:
    """Has a trainer go on with the log window that a checkpoint was saved in: its loss, updates and metrics."""
    window = trainer.checkpoints.window(checkpoint)
    loss = window["loss"].to(trainer._tr_loss)
    trainer._tr_loss += loss
    # The mean loss of a run is that of its own updates
    trainer._total_loss_scalar -= trainer.accelerator.reduce(loss, reduction="mean").item()
    trainer._globalstep_last_logged -= window["updates"]
    trainer.metrics.carry(window["metrics"])
