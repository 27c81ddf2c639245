"""From a raw preference data set to checked, tokenised and cut rows, with a count of everything that was changed."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_dpo_ext.data.checks import REF_LOGPS_COLUMNS, TOKENIZED_COLUMNS, check_columns, preference_problem
from trl_dpo_ext.data.prompts import split_prompt
from trl_dpo_ext.data.report import DataReport
from trl_dpo_ext.data.tokenization import cut_pair, leading_special_ids, tokenize_pair


__all__ = [
    "ROW_NUMBER",
    "SAME_TOKENS",
    "check_eos",
    "check_ref_logps",
    "check_tokenized",
    "columns_of",
    "cut_pairs",
    "drop_full_prompts",
    "drop_same_tokens",
    "drop_unusable",
    "has_finite_ref_logps",
    "has_ref_logps",
    "is_tokenized",
    "pair_problem",
    "split_prompts",
    "tokenize_pairs",
    "without_row_numbers",
]

logger = logging.get_logger(__name__)

# Number of a row in the user's data set, which a dropped row before it does not change
ROW_NUMBER = "__row"
SAME_TOKENS = "both answers have the same tokens"


_UNCOUNTED = DataReport(rows=None, dropped=None, prompts_cut=None, answers_cut=None)


def is_tokenized(dataset: Dataset | IterableDataset) -> bool:
    """Whether a data set already has TRL's token columns."""
    return set(TOKENIZED_COLUMNS) <= set(columns_of(dataset))


def columns_of(dataset: Dataset | IterableDataset) -> list[str]:
    """Column names, looked up in the first row where a streaming data set does not know them."""
    return dataset.column_names or list(next(iter(dataset), {}))


def drop_unusable(
    dataset: Dataset | IterableDataset,
    dataset_name: str,
    num_proc: int | None = None,
    *,
    needs_prompt: bool = True,
    keep_all: bool = False,
) -> tuple[Dataset | IterableDataset, DataReport]:
    """
    Checks columns and rows, and leaves out rows that carry no preference: empty or identical answers.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Raw rows.
        dataset_name (`str`):
            Name used in messages.
        num_proc (`int`, *optional*):
            Processes to use.
        needs_prompt (`bool`, *optional*, defaults to `True`):
            Whether an empty prompt is an error: without a BOS token nothing predicts an answer's first token.
        keep_all (`bool`, *optional*, defaults to `False`):
            Only check: every row is kept, for prediction.

    Returns:
        `tuple`: The usable rows, numbered for later messages (see [`without_row_numbers`]), and a [`DataReport`].

    Raises:
        ValueError: If a column is missing, a row is malformed, or nothing is left.
    """
    columns = columns_of(dataset)
    check_columns(columns, dataset_name)
    names = [name for name in ("prompt", "chosen", "rejected") if name in columns]
    check: dict[str, Any] = {
        "dataset_name": dataset_name,
        "needs_prompt": needs_prompt,
        "unused": [name for name in columns if name not in names],
    }
    if isinstance(dataset, IterableDataset):
        first = next(iter(dataset))
        check["is_text"] = isinstance(first["chosen"], str)
        numbered = dataset.map(_number, with_indices=True)
        usable = numbered if keep_all else numbered.filter(_is_usable, fn_kwargs=check)
        if next(iter(usable), None) is None:
            raise ValueError(_nothing_left(dataset_name, f"row 0, {pair_problem(first, 0, **check)['problem']}"))
        return usable, _UNCOUNTED

    problems = dataset.select_columns(names).map(
        pair_problem,
        with_indices=True,
        fn_kwargs=check,
        remove_columns=names,
        num_proc=num_proc,
        desc=f"Checking {dataset_name} dataset",
    )["problem"]
    bad = [index for index, problem in enumerate(problems) if problem and not keep_all]
    dataset = dataset.add_column(ROW_NUMBER, np.arange(len(dataset)))
    return _leave_out(dataset, DataReport(rows=len(dataset)), bad, dataset_name, problems[bad[0]] if bad else "")


def split_prompts(
    dataset: Dataset | IterableDataset, dataset_name: str, num_proc: int | None = None
) -> Dataset | IterableDataset:
    """Adds a `prompt` column where both answers start with it. See [`~trl_dpo_ext.data.prompts.split_prompt`]."""
    if "prompt" in columns_of(dataset):
        return dataset
    return dataset.map(split_prompt, **_map_kwargs(dataset, num_proc, f"Splitting prompts off {dataset_name} dataset"))


def check_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Checks that plain text can end.

    Raises:
        ValueError: If the tokenizer has no EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no EOS token, so an answer's end has no probability. Set `tokenizer.eos_token`."
        )


def tokenize_pairs(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    dataset_name: str,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """
    Adds `prompt_ids`, `chosen_ids` and `rejected_ids` to plain-text rows, prompt and answers tokenised apart.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Plain-text rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with an EOS token.
        dataset_name (`str`):
            Name used in messages.
        num_proc (`int`, *optional*):
            Processes to use.

    Returns:
        `Dataset` or `IterableDataset`

    Raises:
        ValueError: If the tokenizer has no EOS token, or a prompt has no token.
    """
    check_eos(tokenizer)
    return dataset.map(
        tokenize_pair,
        with_indices=True,
        fn_kwargs={
            "tokenizer": tokenizer,
            "leading_ids": leading_special_ids(tokenizer),
            "dataset_name": dataset_name,
        },
        **_map_kwargs(dataset, num_proc, f"Tokenizing {dataset_name} dataset"),
    )


def drop_same_tokens(
    dataset: Dataset | IterableDataset, report: DataReport, dataset_name: str
) -> tuple[Dataset | IterableDataset, DataReport]:
    """Leaves out rows whose answers differ as text but not as tokens: they carry no preference either."""
    if isinstance(dataset, IterableDataset):
        return dataset.filter(_differs, fn_kwargs={"dataset_name": dataset_name}), report
    pairs = zip(dataset["chosen_ids"], dataset["rejected_ids"], strict=True)
    bad = [index for index, (chosen, rejected) in enumerate(pairs) if chosen == rejected]
    return _leave_out(dataset, report, bad, dataset_name, SAME_TOKENS)


def drop_full_prompts(
    dataset: Dataset | IterableDataset, report: DataReport, dataset_name: str, max_length: int
) -> tuple[Dataset | IterableDataset, DataReport]:
    """Leaves out rows whose prompt alone fills `max_length`, as TRL does: its cut would leave no answer."""
    if isinstance(dataset, IterableDataset):
        return dataset.filter(_leaves_room, fn_kwargs={"max_length": max_length}), report
    bad = [index for index, ids in enumerate(dataset["prompt_ids"]) if len(ids) >= max_length]
    if len(bad) == len(dataset):
        raise ValueError(
            f"Every prompt of the {dataset_name} dataset fills `max_length={max_length}`, so that no answer is left. "
            "Raise it."
        )
    return _leave_out(dataset, report, bad, dataset_name, f"its prompt fills `max_length={max_length}`")


def cut_pairs(
    dataset: Dataset | IterableDataset,
    report: DataReport,
    dataset_name: str,
    *,
    max_length: int | None,
    max_prompt_length: int | None,
    keep_end: bool,
    leading_ids: list[int],
    num_proc: int | None = None,
) -> tuple[Dataset | IterableDataset, DataReport]:
    """Cuts over-long rows by the authors' rule, and counts them. See [`~trl_dpo_ext.data.tokenization.cut_pair`]."""
    if max_length is None:
        return dataset, report
    dataset = dataset.map(
        cut_pair,
        fn_kwargs={
            "max_length": max_length,
            "max_prompt_length": max_prompt_length,
            "keep_end": keep_end,
            "leading_ids": leading_ids,
        },
        **_map_kwargs(dataset, num_proc, f"Cutting {dataset_name} dataset"),
    )
    if isinstance(dataset, Dataset):
        report = replace(report, prompts_cut=sum(dataset["prompt_cut"]), answers_cut=sum(dataset["answer_cut"]))
    return dataset.remove_columns(["prompt_cut", "answer_cut"]), report


def check_tokenized(
    dataset: Dataset | IterableDataset, dataset_name: str
) -> tuple[Dataset | IterableDataset, DataReport]:
    """
    Checks rows that come with token ids: each list must hold at least one id.

    Raises:
        ValueError: Naming the first row with an empty list, or a missing column.
    """
    check_columns(columns_of(dataset), dataset_name)
    if isinstance(dataset, IterableDataset):
        numbered = dataset.map(_number, with_indices=True)
        return numbered.filter(_has_tokens, fn_kwargs={"dataset_name": dataset_name}), _UNCOUNTED
    for index, row in enumerate(dataset.select_columns(list(TOKENIZED_COLUMNS))):
        _has_tokens(row | {ROW_NUMBER: index}, dataset_name)
    return dataset.add_column(ROW_NUMBER, np.arange(len(dataset))), DataReport(rows=len(dataset))


def has_ref_logps(dataset: Dataset | IterableDataset, columns: Sequence[str] = REF_LOGPS_COLUMNS) -> bool:
    """Whether the rows bring their own reference log-probabilities, in `columns` or as pairs do."""
    found = set(columns_of(dataset))
    return set(columns) <= found or set(REF_LOGPS_COLUMNS) <= found


def check_ref_logps(dataset: Dataset | IterableDataset, dataset_name: str) -> Dataset | IterableDataset:
    """
    Checks that every row that brings reference log-probabilities brings finite ones.

    Raises:
        ValueError: Naming the first row that does not (for a stream, when it is reached).
    """
    if not has_ref_logps(dataset):
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.filter(has_finite_ref_logps, fn_kwargs={"dataset_name": dataset_name})
    for row in dataset.select_columns([*REF_LOGPS_COLUMNS, ROW_NUMBER]):
        has_finite_ref_logps(row, dataset_name)
    return dataset


def without_row_numbers(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Removes the numbers of the user's rows, which only messages need."""
    return dataset.remove_columns(ROW_NUMBER)


def _leave_out(
    dataset: Dataset, report: DataReport, bad: list[int], dataset_name: str, why: str
) -> tuple[Dataset, DataReport]:
    if not bad:
        return dataset, report
    first_dropped = report.first_dropped or f"row {dataset[bad[0]][ROW_NUMBER]}, {why}"
    if len(bad) == len(dataset):
        raise ValueError(_nothing_left(dataset_name, first_dropped))
    kept = dataset.select(sorted(set(range(len(dataset))).difference(bad)))
    dropped = (report.dropped or 0) + len(bad)
    return kept, replace(report, rows=len(kept), dropped=dropped, first_dropped=first_dropped)


def _nothing_left(dataset_name: str, first_dropped: str) -> str:
    return (
        f"No row of the {dataset_name} dataset is usable ({first_dropped}). It needs pairs of two different answers."
    )


def _number(row: dict[str, Any], index: int) -> dict[str, int]:
    return {ROW_NUMBER: index}


def pair_problem(
    row: dict[str, Any],
    index: int,
    dataset_name: str,
    needs_prompt: bool,
    unused: list[str],
    is_text: bool | None = None,
) -> dict[str, str]:
    """
    Checks one raw row of pairs: [`~trl_dpo_ext.data.checks.preference_problem`], and that it has a prompt.

    Returns:
        `dict`: `problem`, why the row is left out, or `""`.

    Raises:
        ValueError: If the row is malformed.
    """
    problem = preference_problem(row, index, dataset_name)
    if is_text is not None and isinstance(row["chosen"], str) != is_text:
        kinds = ("text", "messages") if is_text else ("messages", "text")
        raise ValueError(
            f"The {dataset_name} dataset starts with {kinds[0]}, but row {index} of the {dataset_name} dataset is "
            f"{kinds[1]}. Stream one of the two."
        )
    if problem is None and "prompt" not in row:
        row = split_prompt(row)
        problem = preference_problem(row, index, dataset_name)
        if not row["prompt"] and needs_prompt and not problem:
            others = f" (columns not used: {', '.join(f'`{name}`' for name in unused)})" if unused else ""
            raise ValueError(
                f"The {dataset_name} dataset has no column `prompt`{others}, and the answers of row {index} share no "
                "start that could be one. Rename the column that holds it with `dataset.rename_column`."
            )
    elif problem is None and not row["prompt"] and (needs_prompt or not isinstance(row["prompt"], str)):
        raise ValueError(
            f"`prompt` in row {index} of the {dataset_name} dataset is empty and the tokenizer adds no BOS token, so "
            "nothing predicts the first token of an answer. Give every row a prompt."
        )
    return {"problem": problem or ""}


def _is_usable(row: dict[str, Any], dataset_name: str, **check: Any) -> bool:
    problem = pair_problem(row, row[ROW_NUMBER], dataset_name, **check)["problem"]
    if problem:
        logger.warning_once(f"Rows of the {dataset_name} stream that carry no preference are left out: {problem}.")
    return not problem


def _differs(row: dict[str, Any], dataset_name: str) -> bool:
    if row["chosen_ids"] == row["rejected_ids"]:
        logger.warning_once(f"Rows of the {dataset_name} stream that carry no preference are left out: {SAME_TOKENS}.")
        return False
    return True


def _leaves_room(row: dict[str, Any], max_length: int) -> bool:
    return len(row["prompt_ids"]) < max_length


def _has_tokens(row: dict[str, Any], dataset_name: str) -> bool:
    for name in TOKENIZED_COLUMNS:
        if not row[name]:
            raise ValueError(
                f"`{name}` in row {row[ROW_NUMBER]} of the {dataset_name} dataset is empty. Drop such rows."
            )
    return True


def has_finite_ref_logps(row: dict[str, Any], dataset_name: str) -> bool:
    """`True`; raises a `ValueError` that names the row if its reference log-probabilities are not finite numbers."""
    for name in REF_LOGPS_COLUMNS:
        if row[name] is None or not math.isfinite(row[name]):
            raise ValueError(
                f"`{name}` in row {row[ROW_NUMBER]} of the {dataset_name} dataset is {row[name]}. Reference "
                "log-probabilities must be finite; compute them again, or remove both columns."
            )
    return True


def _map_kwargs(dataset: Dataset | IterableDataset, num_proc: int | None, desc: str) -> dict[str, Any]:
    # `IterableDataset.map` takes neither
    return {"num_proc": num_proc, "desc": desc} if isinstance(dataset, Dataset) else {}
