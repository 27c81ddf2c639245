"""Logged and evaluated figures as means over examples, whatever the batches, the processes and the accumulation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput
from trl import DPOTrainer

from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.metrics import MeanMeter, preference_sums
from trl_dpo_ext.trainers.rows import tokens_of_rows
from trl_dpo_ext.trainers.scored_batch import ScoredBatch


__all__ = ["ExactFigures"]


class ExactFigures(DPOTrainer):
    """
    [`trl.DPOTrainer`] that adds figures up by example (or token) and divides once, when they are logged.

    Several evaluation sets keep their own figures, since each is named by its evaluation's prefix.
    """

    args: BaseDPOConfig

    def __init__(self, *args: Any, **kwargs: Any):
        self._meters = {"train": MeanMeter(), "eval": MeanMeter()}
        self._new_tokens: Tensor | float = 0.0
        self._num_tokens = 0
        super().__init__(*args, **kwargs)

    def record(self, scored: ScoredBatch, inputs: Mapping[str, Any]) -> None:
        """Adds a batch to the figures of the mode that the model is in, without synchronising."""
        training = self.model.training
        self._meters["train" if training else "eval"].add(self.figures_of(scored))
        if training:
            self._new_tokens = (
                self._new_tokens + (tokens_of_rows(inputs)[: len(scored.weights)] * scored.weights).sum()
            )

    def figures_of(self, scored: ScoredBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """The figures of a batch, each as a sum and the weight to divide by."""
        return preference_sums(scored)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # `loss` marks HF's log of a training window, which every process makes
        if "loss" in logs and self._meters["train"]:
            logs.update(self._meters["train"].means(self._add_up))
            logs["num_tokens"] = self.count_tokens()
        super().log(logs, start_time)

    def count_tokens(self) -> int:
        """Tokens trained on so far. Adds up over all processes, so that each must call it."""
        new_tokens = self._add_up(torch.as_tensor(self._new_tokens)).item()
        self._num_tokens += round(new_tokens) * self.args.data_parallel_ranks // self.accelerator.num_processes
        self._new_tokens = 0.0
        return self._num_tokens

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        self._meters["eval"] = MeanMeter()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        exact = self._meters["eval"].means(self._add_up)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in exact.items()}
        metrics[f"{metric_key_prefix}_num_tokens"] = self._num_tokens
        return output._replace(metrics=output.metrics | metrics)

    def _add_up(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum")
