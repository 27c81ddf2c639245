"""`trl-dpo-ext preferred-ft`: fine-tuning on preferred answers (Sec. 4) from a recipe."""

from trl_dpo_ext import PreferredFTConfig
from trl_dpo_ext.cli.stage import run_stage


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Runs the command. See [`~trl_dpo_ext.cli.stage.run_stage`]."""
    return run_stage("preferred-ft", PreferredFTConfig, "PreferredFTTrainer", argv)
