"""`trl-dpo-ext unlikelihood`: the unlikelihood baseline (App. C.3) from a recipe."""

from trl_dpo_ext import UnlikelihoodTrainer
from trl_dpo_ext.cli.training import train


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Runs the command. See [`~trl_dpo_ext.cli.training.train`]."""
    return train("unlikelihood", UnlikelihoodTrainer, argv)
