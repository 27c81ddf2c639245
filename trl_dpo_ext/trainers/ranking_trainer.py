"""Plackett-Luce DPO over K ranked completions (Eq. 20)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from trl_dpo_ext.data.rankings.checks import RANKING_REF_LOGPS_COLUMN, TOKENIZED_RANKING_COLUMNS
from trl_dpo_ext.data.rankings.collator import DataCollatorForRanking
from trl_dpo_ext.data.rankings.preparation import prepare_rankings
from trl_dpo_ext.data.report import DataReport
from trl_dpo_ext.logps import CompletionLogps, completion_logps, existing_completions, to_groups
from trl_dpo_ext.objectives import plackett_luce_loss
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer
from trl_dpo_ext.trainers.ranking_config import RankingDPOConfig
from trl_dpo_ext.trainers.ranking_metrics import RankedBatch, ranking_sums


__all__ = ["RankingDPOTrainer"]


class RankingDPOTrainer(BaseDPOTrainer):
    r"""
    DPO on rankings of K completions, under the Plackett-Luce model.

    $$ L = -\log \prod_{k=1}^{K} \frac{\exp r_k}{\sum_{j \ge k} \exp r_j}, \qquad
       r_k = \beta \log \frac{\pi_\theta(y_k|x)}{\pi_{ref}(y_k|x)} $$

    [Eq. 20](https://huggingface.co/papers/2305.18290) of Rafailov et al. (2023), by
    [`~trl_dpo_ext.objectives.plackett_luce_loss`]: ties, partial rankings (`top_m`) and rows of unequal K are exact.

    **Inputs**: a ranking data set, `prompt`, `completions` (best first, text or messages) and optionally `ranks`; a
    scored one, `prompt`, `completions`, `scores`; or a preference data set, as K = 2. Images: pairs only.

    **Relations**: with K = 2 and no ties equal to [`DPOPaperTrainer`].

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference; by default the policy as training starts.
        args ([`RankingDPOConfig`] or [`trl.DPOConfig`], *optional*):
            Options.

    The other arguments are [`trl.DPOTrainer`]'s, by the same names and in the same order. `compute_metrics` and
    `predict` give implicit rewards `(n, K)`, NaN where a row has no such completion, and ranks `(n, K)`, -1 there;
    completions in the order of their ranks.

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

    config_class = RankingDPOConfig
    args: RankingDPOConfig

    token_columns = TOKENIZED_RANKING_COLUMNS
    ref_columns = (RANKING_REF_LOGPS_COLUMN,)
    takes_images = False

    _own_collator: DataCollatorForRanking | None = None

    def default_collator(self, args: RankingDPOConfig) -> DataCollatorForRanking:
        joint = args.tokenization == "joint"
        self._own_collator = DataCollatorForRanking(
            pad_token_id=0,  # the tokenizer's, as soon as TRL has loaded it
            max_length=args.max_length if joint else None,
            truncation_mode=args.truncation_mode,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )
        return self._own_collator

    def score(self, model: nn.Module, inputs: dict[str, Any], weights: Tensor) -> RankedBatch:
        ref_logps = self.reference_logps(inputs)
        policy, policy_logps = self.run_policy(model, inputs)
        mask, ranks = inputs["rank_mask"], inputs["ranks"]
        order_losses = losses = self.order_losses(policy_logps, ref_logps, mask, ranks)
        if self.aux_loss_enabled:
            losses = losses + self.router_aux_loss_coef * policy.aux_loss
        if self.args.top_m is not None:
            # What comes after the last observed place is below it, in no order
            last = ranks[:, : self.args.top_m].amax(dim=1, keepdim=True)
            ranks = torch.where(mask, torch.minimum(ranks, last + 1), ranks)
        return RankedBatch(
            losses=losses,
            rewards=self.rewards(policy_logps, ref_logps),
            ref_logps=ref_logps,
            policy=policy,
            weights=weights,
            order_losses=order_losses.detach(),
            logps=policy_logps,
            ranks=ranks,
            rank_mask=mask,
            groups=inputs["prompt_groups"],
        )

    def order_losses(self, policy_logps: Tensor, ref_logps: Tensor | None, mask: Tensor, ranks: Tensor) -> Tensor:
        """Plackett-Luce losses `(B,)`; 0 for a row of one completion, which only prediction keeps."""
        options = {"beta": self.beta, "top_m": self.args.top_m}
        several = None if self.model.training else mask.sum(dim=1) > 1  # (B,)
        if several is None or several.all():
            return plackett_luce_loss(policy_logps, ref_logps, mask=mask, ranks=ranks, **options)
        losses = policy_logps.new_zeros(len(mask))
        if several.any():
            ref_logps = None if ref_logps is None else ref_logps[several]
            losses[several] = plackett_luce_loss(
                policy_logps[several], ref_logps, mask=mask[several], ranks=ranks[several], **options
            )
        return losses

    def run_policy(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[CompletionLogps, Tensor]:
        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        inputs = self.with_groups(inputs)
        policy = completion_logps(model, self.model_inputs(inputs), **router)
        return policy, to_groups(policy.logps, inputs["prompt_groups"])

    def run_reference(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        # TRL cuts the rows in two halves, whichever they are
        inputs = self.with_groups(inputs)
        logps = torch.cat(self.compute_ref_log_probs(model, self.model_inputs(inputs)))  # (N,)
        return to_groups(logps, inputs["prompt_groups"])

    def rows_of(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        groups = inputs["prompt_groups"]
        return existing_completions(inputs, groups) | {"prompt_groups": groups}

    def run_reference_to_cache(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        logps = self.run_reference(model, inputs)
        return F.pad(logps, (0, self._num_places - logps.size(1)))  # one width for all batches

    def figures_of(self, scored: RankedBatch) -> dict[str, tuple[Tensor, Tensor]]:
        return ranking_sums(scored, self._num_places)

    def predictions_of(self, scored: RankedBatch) -> tuple[Tensor, Tensor]:
        absent = self._num_places - scored.ranks.size(1)
        rewards = scored.rewards.masked_fill(~scored.rank_mask, torch.nan)
        return F.pad(rewards, (0, absent), value=torch.nan), F.pad(scored.ranks, (0, absent), value=-1)

    def prepare(
        self, dataset: Any, processing_class: Any, args: RankingDPOConfig, dataset_name: str, keep_all: bool = False
    ) -> tuple[Any, DataReport]:
        if self._own_collator is not None:
            self._own_collator.pad_token_id = self._tokenizer.pad_token_id
        dataset, report = prepare_rankings(
            dataset,
            self._tokenizer,
            tokenization=args.tokenization,
            max_length=args.max_length,
            max_prompt_length=args.max_prompt_length,
            prompt_truncation_mode=args.prompt_truncation_mode,
            truncation_mode=args.truncation_mode,
            score_tie_gap=args.score_tie_gap,
            max_completions=args.max_completions,
            keep_all=keep_all,
            dataset_name=dataset_name,
            num_proc=args.dataset_num_proc,
        )
        # Every process logs and gathers as many
        self._num_places = max(self._num_places, report.largest or 0, args.max_completions or 0)
        return dataset, report

    def with_ref_logps(self, dataset: Dataset, logps: Tensor) -> Dataset:
        sizes = (len(ids) for ids in dataset["completion_ids"])
        values = [row[:size] for row, size in zip(logps.tolist(), sizes, strict=True)]
        return dataset.add_column(RANKING_REF_LOGPS_COLUMN, values)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = [*TOKENIZED_RANKING_COLUMNS, RANKING_REF_LOGPS_COLUMN]
        super()._set_signature_columns_if_needed()
