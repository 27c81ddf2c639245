"""Explanation of rewards that are not 0 at the first update."""

from typing import Any

import torch
from torch import nn

from trl_dpo_ext.batches import Batch
from trl_dpo_ext.processes import worst_of_all_processes
from trl_dpo_ext.reference.start_check import explain_start
from trl_dpo_ext.trainers.forward.batch_result import BatchResult


__all__ = ["explain_first_rewards"]


def explain_first_rewards(
    trainer: Any, model: nn.Module, batch: Batch, result: BatchResult, tolerance: float
) -> tuple[bool, str]:
    """
    Explains why rewards are not 0 before the first update, and whether training must stop.

    Args:
        trainer ([`~trl_dpo_ext.trainers.base_trainer.BaseDPOTrainer`]):
            Trainer.
        model ([`~torch.nn.Module`]):
            Policy, as wrapped by accelerate.
        batch ([`~trl_dpo_ext.batches.Batch`]):
            A batch of the first update.
        result ([`~trl_dpo_ext.trainers.forward.batch_result.BatchResult`]):
            Result of its forward passes.
        tolerance (`float`):
            Largest reward that rounding can explain.
    """

    def gap_without_dropout() -> float:
        model.eval()
        with torch.no_grad():
            policy = trainer.runner.run_policy(model, batch)
        model.train()
        gap = trainer.rewards(policy.logps, result.ref_logps).abs().max()
        return worst_of_all_processes(trainer.accelerator, gap[None])[0]

    return explain_start(gap_without_dropout, tolerance, trainer.model, trainer.ref_model, trainer.reference.kind)
