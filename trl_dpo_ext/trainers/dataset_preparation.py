"""The one path from a raw preference data set to token ids, by the options of a config."""

from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from trl_dpo_ext.data.preparation import prepare_pairs
from trl_dpo_ext.data.report import DataReport
from trl_dpo_ext.data.tokenization import Cut, leading_special_ids
from trl_dpo_ext.processes import main_first
from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["prepare_preferences"]


def prepare_preferences(
    dataset: Any,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    args: BaseDPOConfig,
    name: str,
    keep_all: bool = False,
) -> tuple[Any, DataReport]:
    """
    Checks, tokenises and cuts preference rows. Rows that already are token ids are only checked and cut.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Raw or tokenised rows.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer or processor.
        args ([`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`]):
            Options.
        name (`str`):
            Name of the data set, for messages.
        keep_all (`bool`, *optional*, defaults to `False`):
            Keep rows that carry no preference, for prediction.

    Returns:
        `tuple`: Rows with TRL's token columns, and a [`~trl_dpo_ext.data.report.DataReport`].
    """
    tokenizer = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    cut = Cut.of(
        args.tokenization,
        args.max_length,
        args.max_prompt_length,
        args.prompt_truncation_mode,
        args.truncation_mode,
        leading_special_ids(tokenizer),
    )
    with main_first():
        return prepare_pairs(
            dataset,
            processing_class,
            cut=cut,
            keep_all=keep_all,
            dataset_name=name,
            num_proc=args.dataset_num_proc,
        )
