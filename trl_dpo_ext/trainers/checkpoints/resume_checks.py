"""Whether a run may resume from a checkpoint: that it is whole, and of this run; what differs and is still allowed."""

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

# Options of an adapter that shape its weights, or what they do
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

# What makes another training of the same weights, beside the options in "objective"
_OBJECTIVE = ("trainer", *REWARD_OPTIONS)

# Options that an optimizer's and a scheduler's state bring with them
_RESTORED = {"learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"}
_OF_SCHEDULE = {"lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs"}

_PRECISION = ("mixed_precision", "dtype", "adapter_dtype")

_FROM_THE_WEIGHTS = (
    "To start a new run from its weights, make it the model (`model_name_or_path: {folder}`) and leave out "
    "`resume_from_checkpoint`."
)


def check_is_checkpoint(folder: str | Path, process: int = 0) -> None:
    """
    Checks that `folder` holds a whole checkpoint.

    Raises:
        ValueError: If it does not; names those that are near.
    """
    path = Path(folder)
    if not path.is_dir():
        beside = [other.name for other in reversed(checkpoints_of(path.parent))]
        near = f"{path.parent} holds {', '.join(beside) if beside else 'no checkpoint'}."
        raise ValueError(f"There is no checkpoint {folder}. {near}")
    within = newest_whole_here(path, process)
    if within is not None:
        raise ValueError(f"{folder} is no checkpoint: it has no {TRAINER_STATE_NAME}. Did you mean {within}?")
    fault = fault_of(path, process)
    if fault is None:
        return
    beside = newest_whole_here(path.parent, process) if path in checkpoints_of(path.parent) else None
    if beside is None:
        raise ValueError(f"{folder} is no checkpoint: {fault}. {_FROM_THE_WEIGHTS.format(folder=folder)}")
    raise ValueError(
        f"{folder} is no whole checkpoint: {fault}. Resume from {beside}, the newest that is whole, as "
        "`resume_from_checkpoint=True` does."
    )


def check_same_weights(model: Any, folder: str | Path) -> None:
    """
    Checks that a checkpoint holds what this run trains: all weights, or an adapter of the same shape.

    Raises:
        ValueError: If it holds something else; says what each is.
    """
    adapter = is_peft_model(model)
    file = Path(folder, _ADAPTER_FILE)
    if adapter and not file.is_file():  # PEFT puts an adapter into the root only if it is called "default"
        file = Path(folder, str(model.active_adapter), _ADAPTER_FILE)
    saved = _adapter_options(json.loads(file.read_text())) if file.is_file() else None
    if saved is None and not Path(folder, CONFIG_NAME).is_file():
        return  # shards, which do not say
    trained = _adapter_options(model.peft_config[model.active_adapter].to_dict()) if adapter else None
    if saved is None or trained is None:
        if saved is trained:
            return
        holds, trains = (
            "all weights" if options is None else _adapter(options, ("peft_type", "r", "target_modules"))
            for options in (saved, trained)
        )
        fix = "leave out `peft_config` (`use_peft`)" if saved is None else "give that adapter as `peft_config`"
    else:
        differing = [name for name in saved if name in trained and saved[name] != trained[name]]
        if not differing:
            return
        holds, trains = (_adapter(options, differing) for options in (saved, trained))
        fix = "give these options to the adapter (`peft_config`)"
    raise ValueError(
        f"The checkpoint {folder} holds {holds}, and this run trains {trains}. To go on with that run, {fix}. "
        f"{_FROM_THE_WEIGHTS.format(folder=folder)}"
    )


def check_same_objective(saved: dict[str, Any], now: dict[str, Any], folder: str | Path) -> None:
    """
    Checks that a checkpoint was trained by this trainer, with the same beta, loss and truncation.

    Args:
        saved (`dict`):
            State of the checkpoint. What an older version did not write is not compared.
        now (`dict`):
            State that this trainer would write.
        folder (`str` or `Path`):
            Folder of the checkpoint.

    Raises:
        ValueError: If one of them differs, with the values of both.
    """
    differing = _differences(saved, now, _OBJECTIVE)
    differing |= _differences(saved.get("objective", {}), now["objective"], now["objective"])
    if differing:
        found = "; ".join(f"`{name}` is {old!r} there and {new!r} here" for name, (old, new) in differing.items())
        raise ValueError(
            f"The checkpoint {folder} is of a run with another objective: {found}. To go on with that run, give its "
            f"options. {_FROM_THE_WEIGHTS.format(folder=folder)}"
        )


def check_same_optimizer(saved: dict[str, Any], now: dict[str, Any], folder: str | Path) -> None:
    """
    Checks that a checkpoint's optimizer is this run's. Arguments are those of [`check_same_objective`].

    Raises:
        ValueError: If it is another one, which cannot go on from that state.
    """
    differing = _differences(saved.get("schedule", {}), now["schedule"], ["optim"])
    for there, here in differing.values():
        # Fused or not, the state of a step is the same
        if there.removesuffix("_fused") != here.removesuffix("_fused") and _has_schedule(folder):
            raise ValueError(
                f"The checkpoint {folder} holds the state of another optimizer: `optim` is {there!r} there and "
                f"{here!r} here. To go on with that run, set `optim: {there}`. "
                f"{_FROM_THE_WEIGHTS.format(folder=folder)}"
            )


def describe_other_options(saved: dict[str, Any], now: dict[str, Any], folder: str | Path) -> list[str]:
    """
    Compares what makes a resumed run another one than the run of its checkpoint, and is allowed.

    That are the learning rate and its schedule, the batch, the seed, the precision and the rows, and an optimizer
    without its state. Arguments are those of [`check_same_objective`].

    Returns:
        `list[str]`: What differs and which of the values holds, for warnings.
    """
    there, here = (_flat(state) for state in (saved, now))
    names = set(here) - {"optim"}
    if not _has_schedule(folder):  # it starts anew, from this run's options
        names -= _RESTORED | _OF_SCHEDULE
    if here["max_steps"] > 0 and there.get("max_steps", 0) > 0:
        names.discard("num_train_epochs")
    found = []
    for name, (old, new) in _differences(there, here, [name for name in here if name in names]).items():
        # transformers restores the rates that a scheduler starts from, and not how they depend on the step
        whose = "the checkpoint's" if name in _RESTORED else "this run's"
        found.append(f"`{name}` is {old!r} there and {new!r} here ({whose} holds)")
    messages = []
    if found:
        messages.append(
            f"The checkpoint {folder} is of a run with other options: {'; '.join(found)}. "
            f"{_FROM_THE_WEIGHTS.format(folder=folder)}"
        )
    if not _has_optimizer(folder):
        messages.append(
            f"The checkpoint {folder} holds no state of the optimizer (`save_only_model`): optimizer, schedule and "
            "random numbers start anew, and the run will not end at the weights of an uninterrupted one. "
            f"{_FROM_THE_WEIGHTS.format(folder=folder)}"
        )
    return messages


def _flat(state: dict[str, Any]) -> dict[str, Any]:
    # On another number of processes dropout draws other numbers, and the log window begins anew
    of_run = {name: state[name] for name in (*_PRECISION, "processes") if name in state}
    return state.get("schedule", {}) | of_run | state.get("training", {})


def check_same_reference(state: dict[str, Any], reference_hash: str | None, folder: str | Path) -> None:
    """
    Checks that a checkpoint was trained against the reference that this trainer has.

    Raises:
        ValueError: If the hashes differ.
    """
    saved = state.get("reference", {}).get("hash")
    if saved and reference_hash and saved != reference_hash:
        raise ValueError(
            f"The checkpoint {folder} was trained against another reference policy (hash {saved}) than this trainer "
            f"has (hash {reference_hash}). Build the trainer as in the interrupted run: its `model` is the policy "
            "that training started from, not the checkpoint."
        )


def _differences(saved: dict[str, Any], now: dict[str, Any], names: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    # As JSON gives it back: enumerations are text, tuples are lists
    now = json.loads(json.dumps({name: now[name] for name in names}))
    return {name: (saved[name], now[name]) for name in now if name in saved and saved[name] != now[name]}


def _adapter_options(config: dict[str, Any]) -> dict[str, Any]:
    # PEFT writes its sets in any order
    options = {name: config[name] for name in _ADAPTER if name in config}
    sets = (list, tuple, set)
    return {name: sorted(value) if isinstance(value, sets) else value for name, value in options.items()}


def _adapter(options: dict[str, Any], names: Iterable[str]) -> str:
    shown = {name: getattr(options[name], "value", options[name]) for name in names if name in options}
    return f"an adapter ({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _has_schedule(folder: str | Path) -> bool:
    return Path(folder, _SCHEDULE_FILE).is_file()  # not with `save_only_model`


def _has_optimizer(folder: str | Path) -> bool:
    # Alone, in parts, or within DeepSpeed's
    return any(next(Path(folder).glob(name), None) is not None for name in ("optimizer*", "latest"))
