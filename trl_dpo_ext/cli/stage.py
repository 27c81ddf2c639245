"""A training command: its options first, then its trainer."""

import trl_dpo_ext
from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.recipe import parse
from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["run_stage"]


def run_stage(command: str, config_class: type[BaseDPOConfig], trainer: str, argv: list[str]) -> int:
    """
    Reads a recipe and the command line, and trains.

    Args:
        command (`str`):
            Name of the command.
        config_class (`type`):
            Options of its trainer.
        trainer (`str`):
            Public name of its trainer.
        argv (`list[str]`):
            `--config recipe.yaml` and/or `--option value`; the command line wins.

    Returns:
        `int`: As [`~trl_dpo_ext.cli.training.train`]; 2 for options that do not exist.
    """
    try:
        recipe = parse(command, config_class, argv)
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        return fail(command, error)
    # Not for `--help`, nor for a misspelt option: a trainer costs a second to import
    from trl_dpo_ext.cli.training import train

    return train(command, getattr(trl_dpo_ext, trainer), recipe)
