"""Preparation of a preference dataset: checked, tokenized and truncated rows, with a count of every change."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from trl_dpo_ext import __version__
from trl_dpo_ext.data.checks import (
    COMPLETIONS_CUT,
    PROBLEM,
    PROMPT_CUT,
    PROMPT_REPEATED,
    REF_LOGPS_COLUMNS,
    TOKENIZED_COLUMNS,
    check_columns,
)
from trl_dpo_ext.data.columns import columns_of, columns_of_rows, typed
from trl_dpo_ext.data.pair_preparation import pair_columns
from trl_dpo_ext.data.preparation_report import DataReport, usable_rows
from trl_dpo_ext.data.prompts import answers_repeat_prompts
from trl_dpo_ext.data.token_ids import suspects
from trl_dpo_ext.data.tokenization import Cut


__all__ = ["has_ref_logps", "prepare_pairs"]

_COUNTED = [PROBLEM, PROMPT_CUT, COMPLETIONS_CUT, PROMPT_REPEATED]
_TYPES = (
    dict.fromkeys(TOKENIZED_COLUMNS, List(Value("int64")))
    | dict.fromkeys(_COUNTED, Value("bool"))
    | {PROBLEM: Value("string")}
)
_UNCOUNTED = DataReport(rows=None, dropped=None, prompts_cut=None, answers_cut=None, prompts_repeated=None)


def prepare_pairs(
    dataset: Dataset | IterableDataset,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    *,
    cut: Cut,
    keep_all: bool = False,
    dataset_name: str = "train",
    num_proc: int | None = None,
) -> tuple[Dataset | IterableDataset, DataReport]:
    """
    Checks, tokenizes and truncates preference pairs. Rows of token ids are only checked and truncated.

    Left out, and counted, are rows that carry no preference (an empty answer, two answers that are the same, as tokens
    or after truncation) and, if the collator truncates and keeps the start, rows whose prompt fills `max_length`.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows as [`~trl_dpo_ext.data.pair_preparation.prepare_pair`] takes them.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer or processor.
        cut ([`~trl_dpo_ext.data.tokenization.Cut`]):
            Rules of tokenization and truncation.
        keep_all (`bool`, *optional*, defaults to `False`):
            Leave nothing out, for prediction.
        dataset_name (`str`, *optional*, defaults to `"train"`):
            Name used in messages.
        num_proc (`int`, *optional*):
            Processes to use.

    Returns:
        `tuple`: Rows with TRL's token columns and what else they had, and a [`DataReport`].

    Raises:
        TypeError: If `dataset` is no data set.
        ValueError: If a column is missing, a row is malformed, or nothing is left.
    """
    columns = columns_of_rows(dataset, dataset_name)
    check_columns(columns, dataset_name)
    options = {
        "dataset_name": dataset_name,
        "processing_class": processing_class,
        "cut": cut,
        "repeats": answers_repeat_prompts(dataset, columns),
        "keep_all": keep_all,
        "ids_checked": _ids_are_good(dataset, columns),
        "streaming": isinstance(dataset, IterableDataset),
        "version": __version__,
    }
    if isinstance(dataset, IterableDataset):
        prepared = dataset.map(pair_columns, with_indices=True, fn_kwargs=options)
        usable = prepared.filter(_is_usable)
        if next(iter(usable), None) is None:
            raise ValueError(_nothing_left(dataset_name, f"row 0, {next(iter(prepared))[PROBLEM]}"))
        return usable.remove_columns(_COUNTED), _UNCOUNTED
    prepared = dataset.map(
        pair_columns,
        with_indices=True,
        fn_kwargs=options,
        num_proc=num_proc,
        desc=f"Preparing {dataset_name} dataset",
        **typed(dataset, _TYPES),
    )
    return _count(prepared, dataset_name)


def has_ref_logps(dataset: Dataset | IterableDataset, columns: Sequence[str] = REF_LOGPS_COLUMNS) -> bool:
    """Whether the rows bring their own reference log-probabilities, in `columns` or as pairs do."""
    found = set(columns_of(dataset))
    return set(columns) <= found or set(REF_LOGPS_COLUMNS) <= found


def _ids_are_good(dataset: Dataset | IterableDataset, columns: Sequence[str]) -> bool:
    """Whether rows come with token ids in which nothing is to be found; else each row is looked at."""
    if isinstance(dataset, IterableDataset) or not set(TOKENIZED_COLUMNS) <= set(columns):
        return False
    return not suspects(dataset, TOKENIZED_COLUMNS)


def _count(prepared: Dataset, dataset_name: str) -> tuple[Dataset, DataReport]:
    num_rows = len(prepared)
    numbers, first_dropped = usable_rows(prepared)
    if not numbers:
        raise ValueError(_nothing_left(dataset_name, first_dropped))
    if first_dropped:
        prepared = prepared.select(numbers)
    report = DataReport(
        rows=len(numbers),
        dropped=num_rows - len(numbers),
        first_dropped=first_dropped,
        prompts_cut=sum(prepared[PROMPT_CUT]),
        answers_cut=sum(prepared[COMPLETIONS_CUT]),
        prompts_repeated=sum(prepared[PROMPT_REPEATED]),
    )
    return prepared.remove_columns(_COUNTED), report


def _is_usable(row: dict[str, Any]) -> bool:
    return not row[PROBLEM]


def _nothing_left(dataset_name: str, first_dropped: str) -> str:
    if "prompt fills" in first_dropped:
        return f"No row of the {dataset_name} dataset is usable ({first_dropped}): no answer is left. Raise it."
    return (
        f"No row of the {dataset_name} dataset is usable ({first_dropped}). It needs pairs of two different answers."
    )
