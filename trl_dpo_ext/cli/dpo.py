"""`trl-dpo-ext dpo`: DPO (Eq. 7) from a recipe."""

from trl_dpo_ext import DPOPaperTrainer
from trl_dpo_ext.cli.training import train


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Runs the command. See [`~trl_dpo_ext.cli.training.train`]."""
    return train("dpo", DPOPaperTrainer, argv)
