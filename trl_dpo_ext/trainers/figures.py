"""Logged and evaluated figures as means over examples, whatever the batches, the processes and the accumulation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from trl import DPOTrainer

from trl_dpo_ext.metrics.sums import Sums, results
from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.displacement import DisplacementWatch
from trl_dpo_ext.trainers.distributions import Distributions, gather_values
from trl_dpo_ext.trainers.meter import Meter
from trl_dpo_ext.trainers.pair_figures import pair_distributions, pair_sums
from trl_dpo_ext.trainers.rows import tokens_of_rows
from trl_dpo_ext.trainers.run_log import DISTRIBUTIONS, RunLog
from trl_dpo_ext.trainers.scored_batch import ScoredBatch
from trl_dpo_ext.trainers.trackers import send_histograms


__all__ = ["ExactFigures"]

logger = get_logger(__name__)


class ExactFigures(DPOTrainer):
    """
    [`trl.DPOTrainer`] that adds figures up by example (or token) and divides once, when they are logged.

    Several evaluation sets keep their own figures, since each is named by its evaluation's prefix. What is logged
    is also in a [`~trl_dpo_ext.trainers.run_log.RunLog`], with the distributions behind an evaluation's means.
    """

    args: BaseDPOConfig

    def __init__(self, *args: Any, **kwargs: Any):
        self._meters = {"train": Meter(), "eval": Meter()}
        self._displacement = DisplacementWatch()
        self._new_tokens: Tensor | float = 0.0
        self._num_tokens = 0
        self._evaluated: dict[str, list[Tensor]] = {}  # of each batch, the values whose distribution is shown
        self._distributions: Distributions | None = None
        super().__init__(*args, **kwargs)
        self.run_log = RunLog(self.args.output_dir)
        self.add_callback(self.run_log)

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None) -> TrainOutput:
        # What an earlier training has left that ended with an error
        self._meters["train"] = Meter()
        self._new_tokens = 0.0
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def record(self, scored: ScoredBatch, inputs: Mapping[str, Any]) -> None:
        """Adds a batch to the figures of the mode that the model is in, without synchronising."""
        training = self.model.training
        figures = self.figures_of(scored)
        if self.loss_is_overridden:
            del figures["loss"]
        self._meters["train" if training else "eval"].add(figures)
        if training:
            self._new_tokens = (
                self._new_tokens + (tokens_of_rows(inputs)[: len(scored.weights)] * scored.weights).sum()
            )
            return
        for name, values in self.distributions_of(scored).items():
            real = values.detach().masked_fill(scored.weights == 0, torch.nan)
            self._evaluated.setdefault(name, []).append(real)

    @property
    def loss_is_overridden(self) -> bool:
        """Whether a subclass trains on another loss than `losses` gives, which HF logs."""
        return False

    def figures_of(self, scored: ScoredBatch) -> dict[str, Sums]:
        """The figures of a batch."""
        return pair_sums(scored)

    def distributions_of(self, scored: ScoredBatch) -> dict[str, Tensor]:
        """The values `(B,)` whose distribution an evaluation shows; NaN where a row has none."""
        return pair_distributions(scored)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # HF's logs of a training window, and of the end, where TRL puts what came after the last window. Every process
        # makes them
        if ("loss" in logs or "train_runtime" in logs) and self._meters["train"]:
            logs.update(results(self._meters["train"].totals(self._add_up)))
            logs["num_tokens"] = self.count_tokens()
            if "logps/chosen_drift" in logs:
                warning = self._displacement.add(logs["logps/chosen_drift"], logs.get("logps/rejected_drift"))
                if warning:
                    logger.warning(warning)
        super().log(logs, start_time)
        shown = self._distributions
        if shown is not None and f"{shown.prefix}_runtime" in logs:
            self._distributions = None
            if self.is_world_process_zero():
                step = self.state.global_step
                self.run_log.append(DISTRIBUTIONS, shown.rows(step))
                # The scalar of a mean has the name itself
                tagged = {f"{shown.prefix}/{name}_distribution": values for name, values in shown.values.items()}
                send_histograms(self.callback_handler.callbacks, tagged, step)

    def count_tokens(self) -> int:
        """Tokens trained on so far. Adds up over all processes, so that each must call it."""
        new_tokens = self._add_up(torch.as_tensor(self._new_tokens)).item()
        self._num_tokens += round(new_tokens) * self.args.data_parallel_ranks // self.accelerator.num_processes
        self._new_tokens = 0.0
        return self._num_tokens

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        self._meters["eval"] = Meter()
        self._evaluated = {}
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        totals = self._meters["eval"].totals(self._add_up)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in results(totals).items()}
        metrics[f"{metric_key_prefix}_num_tokens"] = self._num_tokens
        values = gather_values(self._evaluated, self.accelerator)
        # Shown when the figures are logged, which `predict` does not
        self._distributions = Distributions(metric_key_prefix, values, totals.get("rewards/calibration_error"))
        return output._replace(metrics=output.metrics | metrics)

    def _add_up(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum")
