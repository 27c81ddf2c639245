"""From a raw preference data set to checked, tokenised and cut rows, with a count of everything that was changed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_dpo_ext.data.checks import REF_LOGPS_COLUMNS, TOKENIZED_COLUMNS, check_columns, preference_problem
from trl_dpo_ext.data.prompts import split_prompt
from trl_dpo_ext.data.tokenization import cut_pair, leading_special_ids, tokenize_pair


__all__ = [
    "DataReport",
    "check_tokenized",
    "columns_of",
    "cut_pairs",
    "drop_unusable",
    "has_ref_logps",
    "is_tokenized",
    "split_prompts",
    "tokenize_pairs",
]

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class DataReport:
    """
    What preparation did to a data set. Counts are `None` where a streaming data set cannot be counted beforehand.

    Args:
        rows (`int` or `None`): Rows left.
        dropped (`int` or `None`): Rows left out because they carry no preference.
        first_dropped (`str`): Number of the first such row, and why.
        prompts_cut (`int` or `None`): Rows with a cut prompt.
        answers_cut (`int` or `None`): Rows with a cut answer.
    """

    rows: int | None
    dropped: int | None = 0
    first_dropped: str = ""
    prompts_cut: int | None = 0
    answers_cut: int | None = 0

    @property
    def share_cut(self) -> float:
        """Share of rows with a cut prompt or answer (at most: a row may have both)."""
        if not self.rows:
            return 0.0
        return min(1.0, ((self.prompts_cut or 0) + (self.answers_cut or 0)) / self.rows)

    def __str__(self) -> str:
        if self.rows is None:
            return "streaming, not counted"
        return (
            f"{self.rows:,} rows ({self.dropped:,} dropped), {self.prompts_cut:,} prompts and "
            f"{self.answers_cut:,} answers cut"
        )


def is_tokenized(dataset: Dataset | IterableDataset) -> bool:
    """Whether a data set already has TRL's token columns."""
    return set(TOKENIZED_COLUMNS) <= set(columns_of(dataset))


def columns_of(dataset: Dataset | IterableDataset) -> list[str]:
    """Column names, looked up in the first row where a streaming data set does not know them."""
    return dataset.column_names or list(next(iter(dataset)))


def drop_unusable(
    dataset: Dataset | IterableDataset, dataset_name: str, num_proc: int | None = None, keep_all: bool = False
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
        keep_all (`bool`, *optional*, defaults to `False`):
            Only check: every row is kept, for prediction.

    Returns:
        `tuple`: The usable rows and a [`DataReport`].

    Raises:
        ValueError: If a column is missing, a row is malformed, or nothing is left.
    """
    check_columns(columns_of(dataset), dataset_name)
    if isinstance(dataset, IterableDataset):
        return dataset.filter(_is_usable, with_indices=True, fn_kwargs={"dataset_name": dataset_name}), DataReport(
            None
        )

    names = [name for name in ("prompt", "chosen", "rejected") if name in dataset.column_names]
    problems = dataset.select_columns(names).map(
        _problem,
        with_indices=True,
        fn_kwargs={"dataset_name": dataset_name},
        remove_columns=names,
        num_proc=num_proc,
        desc=f"Checking {dataset_name} dataset",
    )["problem"]
    bad = [index for index, problem in enumerate(problems) if problem and not keep_all]
    first_dropped = f"row {bad[0]}, {problems[bad[0]]}" if bad else ""
    report = DataReport(rows=len(dataset) - len(bad), dropped=len(bad), first_dropped=first_dropped)
    if not report.rows:
        raise ValueError(
            f"No row of the {dataset_name} dataset is usable ({first_dropped}). It needs pairs of two different "
            "answers."
        )
    if bad:
        dataset = dataset.select(sorted(set(range(len(dataset))).difference(bad)))
    return dataset, report


def split_prompts(
    dataset: Dataset | IterableDataset, dataset_name: str, num_proc: int | None = None
) -> Dataset | IterableDataset:
    """Adds a `prompt` column where both answers start with it. See [`~trl_dpo_ext.data.prompts.split_prompt`]."""
    if "prompt" in columns_of(dataset):
        return dataset
    return dataset.map(split_prompt, **_map_kwargs(dataset, num_proc, f"Splitting prompts off {dataset_name} dataset"))


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
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no EOS token, so an answer's end has no probability. Set `tokenizer.eos_token`."
        )
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


def check_tokenized(dataset: Dataset | IterableDataset, dataset_name: str) -> DataReport:
    """
    Checks rows that come with token ids: each list must hold at least one id.

    Raises:
        ValueError: Naming the first row with an empty list, or a missing column.
    """
    check_columns(columns_of(dataset), dataset_name)
    if isinstance(dataset, IterableDataset):
        return DataReport(rows=None)
    for index, row in enumerate(dataset.select_columns(list(TOKENIZED_COLUMNS))):
        for name in TOKENIZED_COLUMNS:
            if not row[name]:
                raise ValueError(f"`{name}` in row {index} of the {dataset_name} dataset is empty. Drop such rows.")
    return DataReport(rows=len(dataset))


def has_ref_logps(dataset: Dataset | IterableDataset, columns: Sequence[str] = REF_LOGPS_COLUMNS) -> bool:
    """Whether the rows bring their own reference log-probabilities."""
    return set(columns) <= set(columns_of(dataset))


def _problem(row: dict[str, Any], index: int, dataset_name: str) -> dict[str, str]:
    problem = preference_problem(row, index, dataset_name)
    if problem is None and "prompt" not in row:
        problem = preference_problem(split_prompt(row), index, dataset_name)
    return {"problem": problem or ""}


def _is_usable(row: dict[str, Any], index: int, dataset_name: str) -> bool:
    problem = _problem(row, index, dataset_name)["problem"]
    if problem:
        logger.warning_once(
            f"Rows of the {dataset_name} stream that carry no preference are left out (first: row {index}, {problem})."
        )
    return not problem


def _map_kwargs(dataset: Dataset | IterableDataset, num_proc: int | None, desc: str) -> dict[str, Any]:
    # `IterableDataset.map` takes neither
    return {"num_proc": num_proc, "desc": desc} if isinstance(dataset, Dataset) else {}
