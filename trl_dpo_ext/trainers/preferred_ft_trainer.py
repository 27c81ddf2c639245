"""Preferred-FT: supervised fine-tuning on the preferred answer (Sec. 4 and 6)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trl_dpo_ext.data.rankings.best import only_best, unique_prompts
from trl_dpo_ext.data.report import DataReport
from trl_dpo_ext.metrics.divergence import token_kl
from trl_dpo_ext.metrics.sums import Sums, mean_of_sums, means
from trl_dpo_ext.objectives import preferred_ft_loss
from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.trainers.group_trainer import GroupTrainer
from trl_dpo_ext.trainers.preferred_ft_config import PreferredFTConfig
from trl_dpo_ext.trainers.rows import first_rows, real_rows_of
from trl_dpo_ext.trainers.scored_batch import ScoredBatch


__all__ = ["PreferredFTTrainer"]

logger = get_logger(__name__)


class PreferredFTTrainer(GroupTrainer):
    r"""
    Fine-tunes on the preferred answer of every row; only that one is run.

    $$ L = -\log \pi_\theta(y_w|x) $$

    The "Preferred-FT" baseline of [Rafailov et al. (2023)](https://huggingface.co/papers/2305.18290), and the way to a
    reference where no SFT model exists (section 4), by [`~trl_dpo_ext.objectives.preferred_ft_loss`]: the sum over
    tokens, the mean over examples.

    **Inputs**: a preference data set, as for [`DPOPaperTrainer`], or a ranking or scored one, as for
    [`RankingDPOTrainer`], of which it takes the best answer (of several that tie, the first).

    **Relations**: with `loss_reduction="token_mean"` and `tokenization="joint"` equal to [`trl.SFTTrainer`] on prompts
    and completions.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference of the logged rewards. By default there is none, and rewards are beta log pi.
        args ([`PreferredFTConfig`] or [`trl.DPOConfig`], *optional*):
            Options.

    The other arguments are [`trl.DPOTrainer`]'s, by the same names and in the same order. `predict` gives rewards
    `(n, 1)`.

    Example:

    ```python
    from datasets import load_dataset
    from trl_dpo_ext import PreferredFTConfig, PreferredFTTrainer

    trainer = PreferredFTTrainer(
        model="path/to/base-model",
        args=PreferredFTConfig("sft-model", per_device_train_batch_size=8),
        train_dataset=load_dataset("json", data_files="preferences.jsonl", split="train"),
    )
    trainer.train()
    ```
    """

    _name = "Preferred-FT"
    config_class = PreferredFTConfig
    equation = r"L = -\log \pi_\theta(y_w|x)"
    args: PreferredFTConfig

    _num_places = 1

    def losses(self, policy_logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        return preferred_ft_loss(policy_logps)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, int | Tensor | None]:
        batches, examples = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.loss_reduction == "sum" or examples is None:
            return batches, examples
        tokens = torch.zeros((), device=self.accelerator.device)
        for batch in batches:
            mask = first_rows(batch, real_rows_of(batch))["completion_mask"]
            tokens = tokens + mask[..., 1:].sum().to(tokens.device)
        everywhere = self.accelerator.reduce(tokens, reduction="sum")
        return batches, everywhere * self.args.data_parallel_ranks / self.accelerator.num_processes

    def figures_of(self, scored: ScoredBatch) -> dict[str, Sums]:
        weights, policy = scored.weights, scored.policy
        tokens = policy.mask * weights[:, None]  # (B, T - 1)
        by_example = {
            "loss": scored.losses,
            "rewards/chosen": scored.rewards[:, 0],
            "logps/chosen": policy.logps,
        }
        if scored.ref_logps is not None:
            by_example["logps/chosen_drift"] = policy.logps - scored.ref_logps[:, 0]
        if policy.aux_loss is not None:
            by_example["aux_loss"] = policy.aux_loss.expand_as(weights)
        by_token = {
            "entropy": policy.entropy,
            "logits/chosen": policy.mean_logits,
            "mean_token_accuracy": policy.is_top1.float(),
        }
        if scored.ref_token_logps is not None:
            by_token["kl_per_token"] = token_kl(policy.token_logps, scored.ref_token_logps)
        sums = means(by_example, weights)
        if self.args.loss_reduction == "token_mean":
            total = sums["loss"].values[0]
            sums["loss"] = Sums(torch.stack([total, tokens.sum(dtype=total.dtype)]), mean_of_sums)
        return sums | means(by_token, tokens)

    def distributions_of(self, scored: ScoredBatch) -> dict[str, Tensor]:
        return {"rewards/chosen": scored.rewards[:, 0]}

    def prepare(
        self, dataset: Any, processing_class: Any, args: PreferredFTConfig, dataset_name: str, keep_all: bool = False
    ) -> tuple[Any, DataReport]:
        # First, so that each is tokenised and cut by itself, whatever it was compared with
        best, repeated = only_best(dataset, dataset_name, args.score_tie_gap, args.dataset_num_proc)
        dataset, report = self.prepare_groups(best, args, dataset_name, keep_all=keep_all, alone=True, repeats=False)
        report = replace(report, prompts_repeated=repeated)
        if args.unique_prompts and dataset_name == "train" and not keep_all:
            given = report.rows
            dataset = unique_prompts(dataset, dataset_name)
            logger.info(f"{len(dataset)} of {given} rows of the {dataset_name} dataset have a prompt of their own.")
        return dataset, report
