"""`trl-dpo-ext preferred-ft`: fine-tuning on preferred answers (Sec. 4) from a recipe."""

from trl_dpo_ext import PreferredFTConfig
from trl_dpo_ext.cli.recipe import run_recipe


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Runs the command. See [`~trl_dpo_ext.cli.recipe.run_recipe`]."""
    return run_recipe("preferred-ft", PreferredFTConfig, "PreferredFTTrainer", argv)
