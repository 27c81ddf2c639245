"""Checks that a run may resume from a checkpoint, and the differences that are allowed."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME

from trl_dpo_ext.trainers.checkpoints.checkpoint_files import checkpoints_of, fault_of, newest_whole_here
from trl_dpo_ext.trainers.checkpoints.saved_state import REWARD_OPTIONS


__all__ = [
    "check_is_checkpoint",
    "check_same_objective",
    "check_same_optimizer",
    "check_same_reference",
    "check_same_weights",
    "describe_other_options",
]

_ADAPTER_FILE = "adapter_config.json"
_SCHEDULE_FILE = "scheduler.pt"

# Options of an adapter that affect the shape or the effect of its weights
_ADAPTER = (
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "use_dora",
    "use_rslora",
    "bias",
)

# Options that affect the training of the same weights, in addition to those in "objective"
_OBJECTIVE = ("trainer", *REWARD_OPTIONS)

# Options that are restored with the state of the optimizer and the scheduler
_RESTORED = {"learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"}
_OF_SCHEDULE = {"lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs"}

_PRECISION = ("mixed_precision", "dtype", "adapter_dtype")

_FROM_THE_WEIGHTS = (
    "To start a new run from its weights, use it as the model (`model_name_or_path: {folder}`) and leave out "
    "`resume_from_checkpoint`."
)


def check_is_checkpoint(folder: str | Path, process: int = 0) -> None:
    """
    Checks that `folder` is a complete checkpoint.

    Raises:
        ValueError: If it is not. The message names nearby checkpoints.
    """
    path = Path(folder)
    if not path.is_dir():
        beside = [other.name for other in reversed(checkpoints_of(path.parent))]
        near = f"{path.parent} has {', '.join(beside) if beside else 'no checkpoint'}."
        raise ValueError(f"There is no checkpoint {folder}. {near}")
    within = newest_whole_here(path, process)
    if within is not None:
        raise ValueError(f"{folder} is not a checkpoint: it has no {TRAINER_STATE_NAME}. Did you mean {within}?")
    fault = fault_of(path, process)
    if fault is None:
        return
    beside = newest_whole_here(path.parent, process) if path in checkpoints_of(path.parent) else None
    if beside is None:
        raise ValueError(f"{folder} is not a checkpoint: {fault}. {_FROM_THE_WEIGHTS.format(folder=folder)}")
    raise ValueError(
        f"{folder} is not a complete checkpoint: {fault}. Resume from {beside}, the newest complete one, as "
        "`resume_from_checkpoint=True` does."
    )


def check_same_weights(model: Any, folder: str | Path) -> None:
    """
    Checks that a checkpoint contains what this run trains: all weights, or an adapter of the same shape.

    Raises:
        ValueError: If it contains something else. The message describes both.
    """
    adapter = is_peft_model(model)
    file = Path(folder, _ADAPTER_FILE)
    if adapter and not file.is_file():  # PEFT saves an adapter in the main folder only if its name is "default"
        file = Path(folder, str(model.active_adapter), _ADAPTER_FILE)
    saved = _adapter_options(json.loads(file.read_text())) if file.is_file() else None
    if saved is None and not Path(folder, CONFIG_NAME).is_file():
        return  # sharded weights, which are not described
    trained = _adapter_options(model.peft_config[model.active_adapter].to_dict()) if adapter else None
    if saved is None or trained is None:
        if saved is trained:
            return
        holds, trains = (
            "all weights" if options is None else _adapter(options, ("peft_type", "r", "target_modules"))
            for options in (saved, trained)
        )
        fix = "leave out `peft_config` (`use_peft`)" if saved is None else "pass that adapter as `peft_config`"
    else:
        differing = [name for name in saved if name in trained and saved[name] != trained[name]]
        if not differing:
            return
        holds, trains = (_adapter(options, differing) for options in (saved, trained))
        fix = "use these options for the adapter (`peft_config`)"
    raise ValueError(
        f"The checkpoint {folder} contains {holds}, but this run trains {trains}. To continue that run, {fix}. "
        f"{_FROM_THE_WEIGHTS.format(folder=folder)}"
    )


def check_same_objective(saved: dict[str, Any], now: dict[str, Any], folder: str | Path) -> None:
    """
    Checks that a checkpoint is from this trainer, with the same beta, loss and truncation.

    Args:
        saved (`dict`):
            State of the checkpoint. Values that an older version did not save are not compared.
        now (`dict`):
            State of this run.
        folder (`str` or `Path`):
            Folder of the checkpoint.

    Raises:
        ValueError: If values differ. The message has both values.
    """
    differing = _differences(saved, now, _OBJECTIVE)
    differing |= _differences(saved.get("objective", {}), now["objective"], now["objective"])
    if differing:
        found = "; ".join(f"`{name}` is {old!r} there and {new!r} here" for name, (old, new) in differing.items())
        raise ValueError(
            f"The checkpoint {folder} is from a run with another objective: {found}. To continue that run, use its "
            f"options. {_FROM_THE_WEIGHTS.format(folder=folder)}"
        )


def check_same_optimizer(saved: dict[str, Any], now: dict[str, Any], folder: str | Path) -> None:
    """
    Checks that a checkpoint has the optimizer of this run. Arguments are the same as in [`check_same_objective`].

    Raises:
        ValueError: If it has another optimizer, whose state cannot be used.
    """
    differing = _differences(saved.get("schedule", {}), now["schedule"], ["optim"])
    for there, here in differing.values():
        # Fused and other optimizers have the same state
        if there.removesuffix("_fused") != here.removesuffix("_fused") and _has_schedule(folder):
            raise ValueError(
                f"The checkpoint {folder} has the state of another optimizer: `optim` is {there!r} there and "
                f"{here!r} here. To continue that run, set `optim: {there}`. "
                f"{_FROM_THE_WEIGHTS.format(folder=folder)}"
            )


def describe_other_options(saved: dict[str, Any], now: dict[str, Any], folder: str | Path) -> list[str]:
    """
    Describes allowed differences between a resumed run and the run of its checkpoint.

    These are the learning rate and its schedule, the batch, the seed, the precision, the rows, and a missing state of
    the optimizer. Arguments are the same as in [`check_same_objective`].

    Returns:
        `list[str]`: Warnings, which say what differs and which value is used.
    """
    there, here = (_flat(state) for state in (saved, now))
    names = set(here) - {"optim"}
    if not _has_schedule(folder):  # it starts again, with the options of this run
        names -= _RESTORED | _OF_SCHEDULE
    if here["max_steps"] > 0 and there.get("max_steps", 0) > 0:
        names.discard("num_train_epochs")
    found = []
    for name, (old, new) in _differences(there, here, [name for name in here if name in names]).items():
        # transformers restores the initial rates of a scheduler, but not how they depend on the step
        whose = "the checkpoint's" if name in _RESTORED else "this run's"
        found.append(f"`{name}` is {old!r} there and {new!r} here ({whose} is used)")
    messages = []
    if found:
        messages.append(
            f"The checkpoint {folder} is from a run with other options: {'; '.join(found)}. "
            f"{_FROM_THE_WEIGHTS.format(folder=folder)}"
        )
    if not _has_optimizer(folder):
        messages.append(
            f"The checkpoint {folder} has no state of the optimizer (`save_only_model`): optimizer, schedule and "
            "random numbers start again, and the run will not reach the weights of an uninterrupted one. "
            f"{_FROM_THE_WEIGHTS.format(folder=folder)}"
        )
    return messages


def _flat(state: dict[str, Any]) -> dict[str, Any]:
    # With another number of processes, dropout draws other numbers, and the log window starts again
    of_run = {name: state[name] for name in (*_PRECISION, "processes") if name in state}
    return state.get("schedule", {}) | of_run | state.get("training", {})


def check_same_reference(state: dict[str, Any], reference_hash: str | None, folder: str | Path) -> None:
    """
    Checks that a checkpoint was trained with the reference of this trainer.

    Raises:
        ValueError: If the hashes differ.
    """
    saved = state.get("reference", {}).get("hash")
    if saved and reference_hash and saved != reference_hash:
        raise ValueError(
            f"The checkpoint {folder} was trained with another reference policy (hash {saved}) than this trainer has "
            f"(hash {reference_hash}). Build the trainer as in the interrupted run: its `model` is the policy that "
            "training started from, not the checkpoint."
        )


def _differences(saved: dict[str, Any], now: dict[str, Any], names: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    # As read from JSON: enumerations are text, tuples are lists
    now = json.loads(json.dumps({name: now[name] for name in names}))
    return {name: (saved[name], now[name]) for name in now if name in saved and saved[name] != now[name]}


def _adapter_options(config: dict[str, Any]) -> dict[str, Any]:
    # PEFT saves its sets in any order
    options = {name: config[name] for name in _ADAPTER if name in config}
    sets = (list, tuple, set)
    return {name: sorted(value) if isinstance(value, sets) else value for name, value in options.items()}


def _adapter(options: dict[str, Any], names: Iterable[str]) -> str:
    shown = {name: getattr(options[name], "value", options[name]) for name in names if name in options}
    return f"an adapter ({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _has_schedule(folder: str | Path) -> bool:
    return Path(folder, _SCHEDULE_FILE).is_file()  # does not exist with `save_only_model`


def _has_optimizer(folder: str | Path) -> bool:
    # In one file, in parts, or in DeepSpeed's files
    return any(next(Path(folder).glob(name), None) is not None for name in ("optimizer*", "latest"))
