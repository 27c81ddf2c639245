"""The one path from a raw preference data set to token ids, by the options of a config."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import is_conversational

from trl_dpo_ext.compat import global_then_local_main_first
from trl_dpo_ext.data.preparation import (
    DataReport,
    check_tokenized,
    cut_pairs,
    drop_unusable,
    is_tokenized,
    split_prompts,
    tokenize_pairs,
)
from trl_dpo_ext.data.tokenization import leading_special_ids
from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["prepare_preferences"]


def prepare_preferences(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: BaseDPOConfig,
    name: str,
    prepare_as_trl: Callable[[Any, int | None], Any],
    keep_all: bool = False,
) -> tuple[Any, DataReport]:
    """
    Checks, tokenises and cuts preference rows. Rows that already are token ids are only checked and cut.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Raw or tokenised rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        args ([`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`]):
            Options.
        name (`str`):
            Name of the data set, for messages.
        prepare_as_trl (`Callable`):
            TRL's own preparation, given rows and a `max_length`.
        keep_all (`bool`, *optional*, defaults to `False`):
            Keep rows that carry no preference, for prediction.

    Returns:
        `tuple`: Rows with TRL's token columns, and a [`~trl_dpo_ext.data.preparation.DataReport`].
    """
    num_proc = args.dataset_num_proc
    joint = args.tokenization == "joint"
    if is_tokenized(dataset):
        report = check_tokenized(dataset, name)
    else:
        dataset, report = drop_unusable(dataset, name, num_proc, keep_all)
        if joint:
            # TRL drops rows whose prompt fills `max_length`, which prediction must not
            dataset = prepare_as_trl(dataset, None if keep_all else args.max_length)
        else:
            with global_then_local_main_first():
                dataset = split_prompts(dataset, name, num_proc)
            if is_conversational(next(iter(dataset))):
                dataset = prepare_as_trl(dataset, None)
            else:
                with global_then_local_main_first():
                    dataset = tokenize_pairs(dataset, tokenizer, name, num_proc)
    if joint:
        return dataset, _count_trl_cut(dataset, report, args.max_length)
    with global_then_local_main_first():
        return cut_pairs(
            dataset,
            report,
            name,
            max_length=args.max_length,
            max_prompt_length=args.max_prompt_length,
            keep_end=args.prompt_truncation_mode == "keep_end",
            leading_ids=leading_special_ids(tokenizer),
            num_proc=num_proc,
        )


def _count_trl_cut(dataset: Any, report: DataReport, max_length: int | None) -> DataReport:
    # TRL drops rows whose prompt fills `max_length`, and its collator cuts the others
    if not isinstance(dataset, Dataset) or max_length is None or report.rows is None or report.dropped is None:
        return report
    too_long = report.rows - len(dataset)
    if not len(dataset):
        raise ValueError(f"Every prompt fills `max_length={max_length}`, so that no answer is left. Raise it.")
    table = dataset.with_format("arrow")[:]
    prompt, chosen, rejected = (
        pc.list_value_length(table[column]).to_numpy() for column in ("prompt_ids", "chosen_ids", "rejected_ids")
    )
    cut = int(((prompt + chosen > max_length) | (prompt + rejected > max_length)).sum())
    return replace(
        report,
        rows=len(dataset),
        dropped=report.dropped + too_long,
        first_dropped=report.first_dropped or (f"a prompt that fills `max_length={max_length}`" if too_long else ""),
        answers_cut=cut,
    )
