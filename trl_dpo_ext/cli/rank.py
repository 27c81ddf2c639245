"""`trl-dpo-ext rank`: Plackett-Luce DPO on rankings (Eq. 20) from a recipe."""

from trl_dpo_ext import RankingDPOConfig
from trl_dpo_ext.cli.recipe import run_recipe


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Runs the command. See [`~trl_dpo_ext.cli.recipe.run_recipe`]."""
    return run_recipe("rank", RankingDPOConfig, "RankingDPOTrainer", argv)
