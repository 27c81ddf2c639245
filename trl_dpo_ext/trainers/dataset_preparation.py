"""The one path from a raw preference data set to token ids, by the options of a config."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl import extract_prompt, is_conversational

from trl_dpo_ext.data.preparation import (
    ROW_NUMBER,
    check_eos,
    check_ref_logps,
    check_tokenized,
    cut_pairs,
    drop_full_prompts,
    drop_same_tokens,
    drop_unusable,
    is_tokenized,
    split_prompts,
    tokenize_pairs,
    without_row_numbers,
)
from trl_dpo_ext.data.rankings.rows import as_ranking
from trl_dpo_ext.data.rankings.tokenization import tokenize_ranking
from trl_dpo_ext.data.report import DataReport
from trl_dpo_ext.data.tokenization import leading_special_ids
from trl_dpo_ext.processes import main_first
from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["prepare_preferences"]


def prepare_preferences(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: BaseDPOConfig,
    name: str,
    prepare_as_trl: Callable[[Any], Any],
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
            TRL's own preparation, without its cut.
        keep_all (`bool`, *optional*, defaults to `False`):
            Keep rows that carry no preference, for prediction.

    Returns:
        `tuple`: Rows with TRL's token columns, and a [`~trl_dpo_ext.data.preparation.DataReport`].
    """
    num_proc = args.dataset_num_proc
    joint = args.tokenization == "joint"
    leading_ids = leading_special_ids(tokenizer)
    if is_tokenized(dataset):
        dataset, report = check_tokenized(dataset, name)
    else:
        dataset, report = drop_unusable(
            dataset, name, num_proc, needs_prompt=not (joint or leading_ids), keep_all=keep_all
        )
        if not joint:
            with main_first():
                dataset = split_prompts(dataset, name, num_proc)
        if is_conversational(next(iter(dataset))):
            try:
                dataset = prepare_as_trl(dataset)
            except TemplateError:
                _name_the_row(dataset, tokenizer, name)
                raise
        elif joint:
            check_eos(tokenizer)
            dataset = prepare_as_trl(dataset)
        else:
            with main_first():
                dataset = tokenize_pairs(dataset, tokenizer, name, num_proc)
    dataset = check_ref_logps(dataset, name)
    if not keep_all:
        dataset, report = drop_same_tokens(dataset, report, name)
    if joint:
        if args.max_length is not None and args.truncation_mode == "keep_start" and not keep_all:
            dataset, report = drop_full_prompts(dataset, report, name, args.max_length)
        report = _count_trl_cut(dataset, report, args.max_length)
    else:
        with main_first():
            dataset, report = cut_pairs(
                dataset,
                report,
                name,
                max_length=args.max_length,
                max_prompt_length=args.max_prompt_length,
                keep_end=args.prompt_truncation_mode == "keep_end",
                leading_ids=leading_ids,
                num_proc=num_proc,
            )
    return without_row_numbers(dataset), report


def _name_the_row(dataset: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    # TRL's error does not say which it was
    for row in dataset:
        where = f"row {row[ROW_NUMBER]} of the {name} dataset"
        pair = row if "prompt" in row else row | extract_prompt(row)
        tokenize_ranking(as_ranking(pair), tokenizer, [], where, joint=True)


def _count_trl_cut(dataset: Any, report: DataReport, max_length: int | None) -> DataReport:
    # TRL's collator cuts a prompt with its answer, each pair by itself
    if not isinstance(dataset, Dataset) or max_length is None:
        return report
    table = dataset.with_format("arrow")[:]
    prompt, chosen, rejected = (
        pc.list_value_length(table[column]).to_numpy() for column in ("prompt_ids", "chosen_ids", "rejected_ids")
    )
    cut = (prompt + chosen > max_length) | (prompt + rejected > max_length)
    return replace(report, answers_cut=int(cut.sum()))
