"""Preparation of a dataset on all processes."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from trl_dpo_ext.data.columns import opened
from trl_dpo_ext.data.preparation_report import DataReport
from trl_dpo_ext.processes import check_same, main_first, together
from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["prepare_everywhere"]


def prepare_everywhere(
    prepare: Callable[..., tuple[Any, DataReport]],
    dataset: Any,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    args: BaseDPOConfig,
    name: str,
    keep_all: bool = False,
) -> tuple[Any, DataReport]:
    """
    Prepares a dataset on all processes. Each machine may have its own copy.

    Args:
        prepare (`Callable`):
            A trainer's `prepare`, with the arguments below.
        dataset (`Dataset` or `IterableDataset`):
            Raw or tokenized rows.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer or processor.
        args ([`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`]):
            Options.
        name (`str`):
            Name of the dataset, for messages.
        keep_all (`bool`, *optional*, defaults to `False`):
            Keep rows that carry no preference, for prediction.

    Raises:
        ValueError: On all processes, if one fails, or if they do not have the same number of rows.
    """
    with together():
        dataset = opened(dataset, name)
        if isinstance(dataset, IterableDataset) and name != "train" and args.world_size > 1:
            # A stream cannot be split over processes without repeating rows or leaving some out
            dataset = Dataset.from_list(list(dataset), on_mixed_types="use_json")
        with main_first():
            dataset, report = prepare(dataset, processing_class, args, name, keep_all)
    if isinstance(dataset, Dataset):
        check_same(len(dataset), f"usable rows of the {name} dataset")
    return dataset, report
