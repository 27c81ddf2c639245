"""`trl-dpo-ext rank`: Plackett-Luce DPO on rankings (Eq. 20) from a recipe."""

from trl_dpo_ext import RankingDPOTrainer
from trl_dpo_ext.cli.training import train


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Runs the command. See [`~trl_dpo_ext.cli.training.train`]."""
    return train("rank", RankingDPOTrainer, argv)
