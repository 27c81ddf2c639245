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
            Method `prepare` of a trainer, with the arguments below.
        dataset (`Dataset` or `IterableDataset`):
            Raw or tokenized rows.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer or processor.
        args ([`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`]):
            Options.
        name (`str`):
            Name of the dataset in messages.
        keep_all (`bool`, *optional*, defaults to `False`):
            Whether to keep rows without a preference, for prediction.

    Raises:
        ValueError: On all processes, if preparation fails on one, or their numbers of rows differ.
    """
    with together():
        dataset = opened(dataset, name)
        if isinstance(dataset, IterableDataset) and name != "train" and args.world_size > 1:
            # A streaming dataset cannot be split over processes without repeating or dropping rows
            dataset = Dataset.from_list(list(dataset), on_mixed_types="use_json")
        with main_first():
            dataset, report = prepare(dataset, processing_class, args, name, keep_all)
    if isinstance(dataset, Dataset):
        check_same(len(dataset), f"usable rows of the {name} dataset")
    return dataset, report
