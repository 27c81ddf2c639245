"""Preferred-FT: supervised fine-tuning on the preferred answer (Sec. 4 and 6)."""

from typing import Any

import torch
from torch import Tensor

from trl_dpo_ext.batches import first_examples
from trl_dpo_ext.data.preparation_report import DataReport
from trl_dpo_ext.data.unique_prompts import unique_prompts
from trl_dpo_ext.metrics.sums import Sums, mean_of_sums
from trl_dpo_ext.objectives import preferred_ft_loss
from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.trainers.forward.batch_result import BatchResult
from trl_dpo_ext.trainers.forward.repeated_rows import NUM_REAL
from trl_dpo_ext.trainers.group_trainer import GroupTrainer
from trl_dpo_ext.trainers.preferred_ft_config import PreferredFTConfig


__all__ = ["PreferredFTTrainer"]

logger = get_logger(__name__)


class PreferredFTTrainer(GroupTrainer):
    r"""
    Fine-tunes on the preferred answer of every row. The other answers are not run.

    $$ L = -\log \pi_\theta(y_w|x) $$

    The "Preferred-FT" baseline of [Rafailov et al. (2023)](https://huggingface.co/papers/2305.18290). Section 4 uses
    it to train a reference if there is no SFT model. See [`~trl_dpo_ext.objectives.preferred_ft_loss`]: the sum over
    tokens, the mean over examples.

    **Inputs**: a preference dataset, as for [`DPOPaperTrainer`], or a ranking or scored dataset, as for
    [`RankingDPOTrainer`], of which only the best answer is used (of several that tie, the first).

    **Relations**: with `loss_reduction="token_mean"` and `tokenization="joint"`, equal to [`trl.SFTTrainer`] on
    prompts and completions.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference of the logged rewards. By default there is none, and rewards are beta log pi.
        args ([`PreferredFTConfig`] or [`trl.DPOConfig`], *optional*):
            Options.

    The other arguments are the same as in [`trl.DPOTrainer`], in the same order. `predict` returns rewards `(n, 1)`.

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

    largest = 1

    def losses(self, policy_logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        return preferred_ft_loss(policy_logps)

    def divisor_of(self, batches: list[dict[str, Any]], examples: int) -> int | Tensor:
        if self.args.loss_reduction == "sum":
            return examples
        tokens = torch.zeros((), device=self.accelerator.device)
        for collated in batches:
            mask = first_examples(collated, collated[NUM_REAL])["completion_mask"]
            tokens = tokens + mask[..., 1:].sum().to(tokens.device)
        everywhere = self.accelerator.reduce(tokens, reduction="sum")
        return everywhere * self.args.data_parallel_ranks / self.accelerator.num_processes

    def metrics_of(self, result: BatchResult) -> dict[str, Sums]:
        metrics = super().metrics_of(result)
        if self.args.loss_reduction == "token_mean":
            loss = metrics["loss"].values[0]
            tokens = (result.policy.mask * result.weights[:, None, None]).sum(dtype=loss.dtype)
            metrics["loss"] = Sums(torch.stack([loss, tokens]), mean_of_sums)
        return metrics

    def prepare(
        self, dataset: Any, processing_class: Any, args: PreferredFTConfig, dataset_name: str, keep_all: bool = False
    ) -> tuple[Any, DataReport]:
        dataset, report = super().prepare(dataset, processing_class, args, dataset_name, keep_all)
        if args.unique_prompts and dataset_name == "train" and not keep_all:
            given = report.rows
            dataset = unique_prompts(dataset, dataset_name)
            logger.info(f"{len(dataset)} of {given} rows of the {dataset_name} dataset have distinct prompts.")
        return dataset, report
