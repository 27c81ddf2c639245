"""`trl-dpo-ext unlikelihood`: the unlikelihood baseline (App. C.3) from a recipe."""

from trl_dpo_ext import UnlikelihoodConfig
from trl_dpo_ext.cli.stage import run_stage


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Runs the command. See [`~trl_dpo_ext.cli.stage.run_stage`]."""
    return run_stage("unlikelihood", UnlikelihoodConfig, "UnlikelihoodTrainer", argv)
