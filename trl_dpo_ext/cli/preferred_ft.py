"""`trl-dpo-ext preferred-ft`: fine-tuning on preferred answers (Sec. 4) from a recipe."""

from trl_dpo_ext import PreferredFTTrainer
from trl_dpo_ext.cli.training import train


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Runs the command. See [`~trl_dpo_ext.cli.training.train`]."""
    return train("preferred-ft", PreferredFTTrainer, argv)
