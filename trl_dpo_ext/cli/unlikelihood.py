"""`trl-dpo-ext unlikelihood`: the unlikelihood baseline (App. C.3) from a recipe."""

from trl_dpo_ext import UnlikelihoodConfig
from trl_dpo_ext.cli.recipe import run_recipe


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Runs the command. See [`~trl_dpo_ext.cli.recipe.run_recipe`]."""
    return run_recipe("unlikelihood", UnlikelihoodConfig, "UnlikelihoodTrainer", argv)
