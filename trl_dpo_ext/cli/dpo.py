"""`trl-dpo-ext dpo`: DPO (Eq. 7) from a recipe."""

from trl_dpo_ext import DPOPaperConfig
from trl_dpo_ext.cli.recipe import run_recipe


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Runs the command. See [`~trl_dpo_ext.cli.recipe.run_recipe`]."""
    return run_recipe("dpo", DPOPaperConfig, "DPOPaperTrainer", argv)
