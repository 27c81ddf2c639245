"""Base class of trainers whose batches are groups of completions `(B, K, T)`, unlike TRL's stacked pairs."""

from typing import Any

from datasets import Dataset
from torch import Tensor

from trl_dpo_ext.batches import RANKING_REF_LOGPS_COLUMN
from trl_dpo_ext.data.preparation_report import DataReport
from trl_dpo_ext.data.rankings.checks import TOKENIZED_RANKING_COLUMNS
from trl_dpo_ext.data.rankings.collator import DataCollatorForRanking
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer


__all__ = ["GroupTrainer"]


class GroupTrainer(BaseDPOTrainer):
    """A [`BaseDPOTrainer`] for prompts with any number of completions."""

    token_columns = TOKENIZED_RANKING_COLUMNS
    ref_columns = (RANKING_REF_LOGPS_COLUMN,)
    takes_images = False
    as_pairs = False

    _own_collator: DataCollatorForRanking | None = None

    def default_collator(self, args: BaseDPOConfig) -> DataCollatorForRanking:
        joint = args.tokenization == "joint"
        self._own_collator = DataCollatorForRanking(
            pad_token_id=0,  # replaced when TRL has loaded the tokenizer
            max_length=args.max_length if joint else None,
            truncation_mode=args.truncation_mode,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )
        return self._own_collator

    def prepare(
        self, dataset: Any, processing_class: Any, args: BaseDPOConfig, dataset_name: str, keep_all: bool = False
    ) -> tuple[Any, DataReport]:
        if self._own_collator is not None:
            self._own_collator.pad_token_id = self._tokenizer.pad_token_id
        return super().prepare(dataset, self._tokenizer, args, dataset_name, keep_all)

    def with_ref_logps(self, dataset: Dataset, logps: Tensor) -> Dataset:
        sizes = (len(ids) for ids in dataset["completion_ids"])
        values = [row[:size] for row, size in zip(logps.tolist(), sizes, strict=True)]
        return dataset.add_column(RANKING_REF_LOGPS_COLUMN, values)
