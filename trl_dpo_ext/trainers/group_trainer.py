"""What trainers share whose batches are groups of completions `(B, K, T)`, and not TRL's stacked pairs."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from trl_dpo_ext.data.checks import RANKING_REF_LOGPS_COLUMN
from trl_dpo_ext.data.rankings.checks import TOKENIZED_RANKING_COLUMNS
from trl_dpo_ext.data.rankings.collator import DataCollatorForRanking
from trl_dpo_ext.data.rankings.preparation import prepare_rankings
from trl_dpo_ext.data.rankings.report import RankingReport
from trl_dpo_ext.logps import existing_completions, to_groups
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer


__all__ = ["GroupTrainer"]


class GroupTrainer(BaseDPOTrainer):
    """A [`BaseDPOTrainer`] on prompts with any number of completions; log-probabilities are `(B, K)`."""

    token_columns = TOKENIZED_RANKING_COLUMNS
    ref_columns = (RANKING_REF_LOGPS_COLUMN,)
    takes_images = False

    _own_collator: DataCollatorForRanking | None = None

    def default_collator(self, args: BaseDPOConfig) -> DataCollatorForRanking:
        joint = args.tokenization == "joint"
        self._own_collator = DataCollatorForRanking(
            pad_token_id=0,  # the tokenizer's, as soon as TRL has loaded it
            max_length=args.max_length if joint else None,
            truncation_mode=args.truncation_mode,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )
        return self._own_collator

    def prepare_groups(
        self, dataset: Any, args: BaseDPOConfig, dataset_name: str, **options: Any
    ) -> tuple[Any, RankingReport]:
        """Checks, tokenises and cuts rows by the options that all trainers share, and further ones."""
        if self._own_collator is not None:
            self._own_collator.pad_token_id = self._tokenizer.pad_token_id
        shared = {
            "tokenization": args.tokenization,
            "max_length": args.max_length,
            "max_prompt_length": args.max_prompt_length,
            "prompt_truncation_mode": args.prompt_truncation_mode,
            "truncation_mode": args.truncation_mode,
            "num_proc": args.dataset_num_proc,
        }
        return prepare_rankings(dataset, self._tokenizer, dataset_name=dataset_name, **(shared | options))

    def to_rows(self, logps: Tensor, inputs: dict[str, Any]) -> Tensor:
        return to_groups(logps, inputs["prompt_groups"])

    def rows_of(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        groups = inputs["prompt_groups"]
        return existing_completions(inputs, groups) | {"prompt_groups": groups}

    def run_reference_to_cache(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        logps = super().run_reference_to_cache(model, inputs)
        return F.pad(logps, (0, self._num_places - logps.size(1)))  # one width for all batches

    def with_ref_logps(self, dataset: Dataset, logps: Tensor) -> Dataset:
        sizes = (len(ids) for ids in dataset["completion_ids"])
        values = [row[:size] for row, size in zip(logps.tolist(), sizes, strict=True)]
        return dataset.add_column(RANKING_REF_LOGPS_COLUMN, values)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = [*TOKENIZED_RANKING_COLUMNS, RANKING_REF_LOGPS_COLUMN]
        super()._set_signature_columns_if_needed()
