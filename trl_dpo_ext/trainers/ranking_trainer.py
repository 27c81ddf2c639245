"""Plackett-Luce DPO on K ranked completions (Eq. 20)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trl_dpo_ext.batches import Batch
from trl_dpo_ext.data.preparation_report import DataReport, RankingReport
from trl_dpo_ext.logps import CompletionLogps
from trl_dpo_ext.objectives import plackett_luce_loss
from trl_dpo_ext.trainers.forward.batch_result import BatchResult
from trl_dpo_ext.trainers.group_trainer import GroupTrainer
from trl_dpo_ext.trainers.ranking_config import RankingDPOConfig


__all__ = ["RankingDPOTrainer"]


class RankingDPOTrainer(GroupTrainer):
    r"""
    DPO on rankings of K completions, under the Plackett-Luce model.

    $$ L = -\log \prod_{k=1}^{K} \frac{\exp r_k}{\sum_{j \ge k} \exp r_j}, \qquad
       r_k = \beta \log \frac{\pi_\theta(y_k|x)}{\pi_{ref}(y_k|x)} $$

    [Eq. 20](https://huggingface.co/papers/2305.18290) of Rafailov et al. (2023), see
    [`~trl_dpo_ext.objectives.plackett_luce_loss`]. Ties, partial rankings (`top_m`) and rows of different K are exact.

    **Inputs**: a ranking dataset with `prompt`, `completions` (best first, text or messages) and optionally `ranks`; a
    scored dataset with `prompt`, `completions`, `scores`; or a preference dataset, where K = 2. Images: pairs only.

    **Relations**: with K = 2 and no ties, equal to [`DPOPaperTrainer`].

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference. Default: the policy at the start of training.
        args ([`RankingDPOConfig`] or [`trl.DPOConfig`], *optional*):
            Options.

    The other arguments are the same as in [`trl.DPOTrainer`], in the same order. `compute_metrics` and `predict` get
    implicit rewards `(n, K)` and ranks `(n, K)`, with completions in the order of their ranks. Missing completions
    have reward NaN and rank -1.

    Example:

    ```python
    from datasets import Dataset
    from trl_dpo_ext import RankingDPOConfig, RankingDPOTrainer

    rows = [{"prompt": "The film was", "completions": [" superb.", " fine.", " dull."], "ranks": [0, 1, 1]}] * 64
    train = Dataset.from_list(rows)
    trainer = RankingDPOTrainer("path/to/sft-model", args=RankingDPOConfig("out"), train_dataset=train)
    trainer.train()
    ```
    """

    _name = "Ranking-DPO"
    config_class = RankingDPOConfig
    equation = (
        r"L = -\log \prod_{k=1}^{K} \frac{\exp r_k}{\sum_{j \ge k} \exp r_j}, \quad"
        r" r_k = \beta \log \frac{\pi_\theta(y_k|x)}{\pi_{ref}(y_k|x)}"
    )
    has_orders = True
    args: RankingDPOConfig

    def losses_of(self, policy: CompletionLogps, ref_logps: Tensor | None, batch: Batch) -> Tensor:
        """Returns Plackett-Luce losses `(B,)`. Rows with one completion, which only prediction keeps, have loss 0."""
        logps, mask, ranks = policy.logps, batch.exists, batch.ranks
        options = {"beta": self.beta, "top_m": self.args.top_m, "has_ties": batch.has_ties}
        several = None if self.model.training else mask.sum(dim=1) > 1  # (B,)
        if several is None or several.all():
            return plackett_luce_loss(logps, ref_logps, mask=mask, ranks=ranks, **options)
        losses = logps.new_zeros(len(mask))
        if several.any():
            ref_logps = None if ref_logps is None else ref_logps[several]
            losses[several] = plackett_luce_loss(
                logps[several], ref_logps, mask=mask[several], ranks=ranks[several], **options
            )
        return losses

    def observed_ranks(self, batch: Batch) -> Tensor:
        if self.args.top_m is None:
            return batch.ranks
        # Completions after the last observed rank are below it, in unknown order
        last = batch.ranks[:, : self.args.top_m].amax(dim=1, keepdim=True)
        return torch.where(batch.exists, torch.minimum(batch.ranks, last + 1), batch.ranks)

    def predictions_of(self, result: BatchResult) -> tuple[Tensor, Tensor]:
        absent = self.largest - result.ranks.size(1)
        rewards = result.rewards.masked_fill(~result.exists, torch.nan)
        return F.pad(rewards, (0, absent), value=torch.nan), F.pad(result.ranks, (0, absent), value=-1)

    def prepare(
        self, dataset: Any, processing_class: Any, args: RankingDPOConfig, dataset_name: str, keep_all: bool = False
    ) -> tuple[Any, DataReport]:
        dataset, report = super().prepare(dataset, processing_class, args, dataset_name, keep_all)
        assert isinstance(report, RankingReport)
        # The same number for all processes, which log and gather it
        self.largest = max(self.largest, report.largest or 0, args.max_completions or 0)
        return dataset, report
