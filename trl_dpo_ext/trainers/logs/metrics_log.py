"""Logged and evaluated metrics, as exact means over examples for any batch size, accumulation and processes."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_dpo_ext.metrics.sums import Sums, results
from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.trainers.logs.distributions import Distributions, gather_values
from trl_dpo_ext.trainers.logs.likelihood_displacement import DisplacementWatch
from trl_dpo_ext.trainers.logs.meter import Meter


__all__ = ["MetricsLog"]

logger = get_logger(__name__)


class MetricsLog:
    """
    Sums metrics over examples (or tokens), and divides once, when they are logged.

    Every evaluation set has its own metrics, named by its prefix.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator.
        data_parallel_ranks (`int`):
            Number of processes that train on different rows.
    """

    def __init__(self, accelerator: Accelerator, data_parallel_ranks: int):
        self.accelerator = accelerator
        self.data_parallel_ranks = data_parallel_ranks
        self.num_tokens = 0  # trained on, when they were last counted
        self._new_tokens: Tensor | float = 0.0
        self._training, self._evaluation = Meter(), Meter()
        self._displacement = DisplacementWatch()
        self._evaluated: dict[str, list[Tensor]] = {}  # values of each batch whose distribution is shown
        self._shown: Distributions | None = None

    def start_training(self) -> None:
        """Resets what a training that ended with an error may have left."""
        self._training = Meter()
        self._new_tokens = 0.0

    def add_training(self, metrics: Mapping[str, Sums], num_tokens: Tensor) -> None:
        """Adds the metrics of a training batch and its number of tokens, without synchronizing."""
        self._training.add(metrics)
        self._new_tokens = self._new_tokens + num_tokens

    def training_window(self) -> dict[str, float]:
        """Metrics since the last call, over all processes; empty if there are none. Every process must call it."""
        if not self._training:
            return {}
        metrics = results(self._training.totals(self._sum_over_processes))
        metrics["num_tokens"] = self.count_tokens()
        if "logps/chosen_drift" in metrics:
            warning = self._displacement.add(metrics["logps/chosen_drift"], metrics.get("logps/rejected_drift"))
            if warning:
                logger.warning(warning)
        return metrics

    def count_tokens(self) -> int:
        """Tokens trained on so far, over all processes. Every process must call it."""
        new_tokens = self._sum_over_processes(torch.as_tensor(self._new_tokens)).item()
        self.num_tokens += round(new_tokens) * self.data_parallel_ranks // self.accelerator.num_processes
        self._new_tokens = 0.0
        return self.num_tokens

    def held(self) -> dict[str, Tensor]:
        """The sums of the current log window on this process, for a checkpoint."""
        return self._training.held()

    def carry(self, held: Mapping[str, Tensor]) -> None:
        """Continues the log window that a checkpoint holds."""
        self._training.carry(held)

    def start_evaluation(self) -> None:
        """Resets the metrics, at the start of an evaluation set."""
        self._evaluation = Meter()
        self._evaluated = {}

    def add_evaluation(
        self, metrics: Mapping[str, Sums], distributions: Mapping[str, Tensor], weights: Tensor
    ) -> None:
        """Adds a batch of an evaluation set, without synchronizing. Distributions and weights are `(B,)`."""
        self._evaluation.add(metrics)
        for name, values in distributions.items():
            real = values.detach().masked_fill(weights == 0, torch.nan)
            self._evaluated.setdefault(name, []).append(real)

    def end_evaluation(self, prefix: str) -> dict[str, float]:
        """Metrics of the evaluation set over all processes, named with the prefix."""
        totals = self._evaluation.totals(self._sum_over_processes)
        values = gather_values(self._evaluated, self.accelerator)
        # Shown when the metrics are logged; `predict` does not log them
        self._shown = Distributions(prefix, values, totals.get("rewards/calibration_error"))
        metrics = {f"{prefix}_{name}": value for name, value in results(totals).items()}
        return metrics | {f"{prefix}_num_tokens": self.num_tokens}

    def distributions_for(self, logs: Mapping[str, Any]) -> Distributions | None:
        """The distributions of an evaluation, once, when its metrics are logged."""
        shown = self._shown
        if shown is None or f"{shown.prefix}_runtime" not in logs:
            return None
        self._shown = None
        return shown

    def _sum_over_processes(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum")
