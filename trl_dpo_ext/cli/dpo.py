"""`trl-dpo-ext dpo`: DPO (Eq. 7) from a recipe."""

from trl_dpo_ext import DPOPaperConfig
from trl_dpo_ext.cli.stage import run_stage


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Runs the command. See [`~trl_dpo_ext.cli.stage.run_stage`]."""
    return run_stage("dpo", DPOPaperConfig, "DPOPaperTrainer", argv)
