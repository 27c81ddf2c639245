"""State of a run on Eq. 3 that transformers does not save, and the checks that a run resumes as it went on."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy

from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.run_files import RL_STATE
from trl_dpo_ext.whole_file import write_text


__all__ = ["RLState", "check_resumes", "read_state", "warn_of_save_steps", "write_state"]

logger = get_logger(__name__)


class RLState(NamedTuple):
    """
    State of a run.

    Attributes:
        trainer (`str`):
            Name of the trainer class.
        initial_beta (`float`):
            Option `beta`.
        beta (`float`):
            Weight of the KL term now, which a [`~trl_dpo_ext.rl.kl_target.KLTargetCallback`] changes.
        reference_hash (`str`):
            Hash of the weights of the reference.
    """

    trainer: str
    initial_beta: float
    beta: float
    reference_hash: str | None


def warn_of_save_steps(args: Any) -> None:
    """Warns if checkpoints will be saved from which a run cannot be resumed."""
    updates = _updates_of_generations(args)
    if args.save_strategy == SaveStrategy.STEPS and args.save_steps >= 1 and args.save_steps % updates:
        logger.warning(
            f"`save_steps={args.save_steps}` saves between the updates of a generation, from where a run cannot be "
            f"resumed. Use a multiple of {updates}."
        )


def write_state(folder: str | Path, state: RLState) -> None:
    """Saves `state` in the folder of a checkpoint."""
    write_text(Path(folder, RL_STATE), json.dumps(state._asdict(), indent=2) + "\n")


def read_state(folder: str | Path) -> RLState:
    """
    Reads the state from the folder of a checkpoint.

    Raises:
        ValueError: If it has none.
    """
    path = Path(folder, RL_STATE)
    if not path.is_file():
        raise ValueError(f"{folder} cannot be resumed from: it has no {RL_STATE}, which each checkpoint has.")
    return RLState(**json.loads(path.read_text()))


def check_resumes(folder: str | Path, saved: RLState, now: RLState, args: Any) -> None:
    """
    Checks that a run resumed from a checkpoint is the run that was interrupted.

    Raises:
        ValueError: If the trainer, `beta` or the reference differ, or the checkpoint was saved between the updates of
            a generation, whose completions are not saved.
    """
    for name, before, after in zip(RLState._fields, saved, now, strict=True):
        if name in ("trainer", "initial_beta") and before != after:
            option = name.removeprefix("initial_")
            raise ValueError(f"{folder} is of a run with `{option}={before}`, not {after}. Use the same.")
    if saved.reference_hash != now.reference_hash:
        raise ValueError(
            f"{folder} is of a run with another reference. Pass the model that the run started from, not the "
            "checkpoint, as `model`. The weights of the checkpoint are loaded by `resume_from_checkpoint`."
        )
    step = TrainerState.load_from_json(str(Path(folder, TRAINER_STATE_NAME))).global_step
    updates = _updates_of_generations(args)
    if step % updates:
        raise ValueError(
            f"{folder} cannot be resumed from exactly: it was saved between the updates of a generation. Set "
            f"`save_steps` to a multiple of {updates}, the number of updates after which a generation ends."
        )


def _updates_of_generations(args: Any) -> int:
    """Number of updates after which all completions that were sampled have been used."""
    micro_batches: int = args.steps_per_generation * args.num_iterations  # of a generation
    return micro_batches // math.gcd(micro_batches, args.gradient_accumulation_steps)
