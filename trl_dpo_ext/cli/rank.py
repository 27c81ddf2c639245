"""`trl-dpo-ext rank`: Plackett-Luce DPO on rankings (Eq. 20) from a recipe."""

from trl_dpo_ext import RankingDPOConfig
from trl_dpo_ext.cli.stage import run_stage


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Runs the command. See [`~trl_dpo_ext.cli.stage.run_stage`]."""
    return run_stage("rank", RankingDPOConfig, "RankingDPOTrainer", argv)
