"""Training command: reads its options, then imports and runs its trainer."""

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
            Class of the trainer's options.
        trainer (`str`):
            Public name of the trainer.
        argv (`list[str]`):
            `--config recipe.yaml` and/or `--option value`. Options on the command line replace those of the recipe.

    Returns:
        `int`: Result of [`~trl_dpo_ext.cli.training.train`], or 2 for invalid options.
    """
    try:
        recipe = parse(command, config_class, argv)
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        return fail(command, error)
    # Importing a trainer takes a second, which `--help` and misspelled options do not need
    from trl_dpo_ext.cli.training import train

    return train(command, getattr(trl_dpo_ext, trainer), recipe)
