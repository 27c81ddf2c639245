"""Preparation of a dataset of rankings: checked, sorted, tokenized and truncated rows, and a count of every change."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from trl_dpo_ext import __version__
from trl_dpo_ext.data.checks import (
    COMPLETIONS_CUT,
    COUNTED,
    DROPPED,
    PROBLEM,
    PROMPT_CUT,
    PROMPT_REPEATED,
    RANKING_REF_LOGPS_COLUMN,
    REF_LOGPS_COLUMNS,
    WHY_DROPPED,
)
from trl_dpo_ext.data.columns import columns_of_rows, typed
from trl_dpo_ext.data.preparation_report import usable_rows
from trl_dpo_ext.data.prompts import answers_repeat_prompts
from trl_dpo_ext.data.rankings.checks import check_ranking_columns
from trl_dpo_ext.data.rankings.order import PAIR_COLUMNS
from trl_dpo_ext.data.rankings.ranking_preparation import check_options, prepare_counted
from trl_dpo_ext.data.rankings.ranking_report import RankingReport
from trl_dpo_ext.data.tokenization import Cut, leading_special_ids


__all__ = ["prepare_rankings"]

_COUNTED = list(COUNTED)
_IDS = List(Value("int64"))
_TYPES = {
    **{"prompt_ids": _IDS, "completion_ids": List(_IDS), "ranks": _IDS, DROPPED: Value("int64")},
    **dict.fromkeys((PROBLEM, WHY_DROPPED), Value("string")),
    **dict.fromkeys((PROMPT_CUT, COMPLETIONS_CUT, PROMPT_REPEATED), Value("bool")),
}


def prepare_rankings(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokenization: str = "separate",
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    prompt_truncation_mode: str | None = "keep_end",
    truncation_mode: str = "keep_start",
    score_tie_gap: float = 0.0,
    max_completions: int | None = None,
    keep_all: bool = False,
    alone: bool = False,
    repeats: bool | None = None,
    dataset_name: str = "train",
    num_proc: int | None = None,
) -> tuple[Dataset | IterableDataset, RankingReport]:
    """
    Checks, sorts, tokenizes and truncates rankings, scored completions or preference pairs. Rows of token ids are only
    checked, sorted and truncated.

    Rows come out best first, with ranks without gaps. Left out, and counted, are
    - empty completions;
    - completions whose tokens another one has as well, before or after truncation, see
        [`~trl_dpo_ext.data.rankings.order.repeated_completions`]: one stays if their place is clear, else none;
    - rows that then say nothing: fewer than two completions, or all tied;
    - with `tokenization="joint"` and `truncation_mode="keep_start"`, rows whose prompt fills `max_length`, as in TRL.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows with `completions` (text or messages) and optionally `prompt`, `ranks` or `scores`, `ref_logps`,
            `tools` and `chat_template_kwargs`; or with `chosen` and `rejected`; or tokenized.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer. It needs an EOS token for text and a chat template for messages.
        tokenization (`str`, *optional*, defaults to `"separate"`):
            `"separate"`: the authors' tokenization (plain text: prompt and completions apart) and truncation.
            `"joint"`: TRL's. Truncation is left to `DataCollatorForRanking(max_length=..., truncation_mode=...)`.
        max_length (`int`, *optional*):
            Most tokens of a prompt with a completion. By default, nothing is truncated.
        max_prompt_length (`int`, *optional*):
            With `"separate"`: tokens that the prompt of a long row is truncated to. Defaults to half of `max_length`.
        prompt_truncation_mode (`str`, *optional*, defaults to `"keep_end"`):
            With `"separate"`: which end of a truncated prompt is kept, `"keep_end"` or `"keep_start"`.
        truncation_mode (`str`, *optional*, defaults to `"keep_start"`):
            With `"joint"`: which end of an over-long prompt with completion the collator will keep.
        score_tie_gap (`float`, *optional*, defaults to `0.0`):
            Difference up to which scores tie. See [`~trl_dpo_ext.data.rankings.order.ranks_from_scores`].
        max_completions (`int`, *optional*):
            Most completions a row may have; a longer row is an error.
        keep_all (`bool`, *optional*, defaults to `False`):
            Whether nothing is left out, for prediction: as many rows come out as go in, with all their completions.
        alone (`bool`, *optional*, defaults to `False`):
            Whether of each row the best completion is taken (of several that tie, the first) and learnt by itself, as
            in supervised fine-tuning. Left out are then only rows in which it is empty, and those whose prompt fills
            `max_length`.
        repeats (`bool`, *optional*):
            Whether completions of text begin with the prompt of their row, which is then taken once. By default where
            they do so in every row.
        dataset_name (`str`, *optional*, defaults to `"train"`):
            Name used in messages.
        num_proc (`int`, *optional*):
            Processes to use.

    Returns:
        `tuple`: Rows with `prompt_ids`, `completion_ids` (K lists), `ranks` (K whole numbers) and what else they had
        (of pairs without the answers' text), and a [`RankingReport`].

    Raises:
        TypeError: If `dataset` is no data set.
        ValueError: If an option or a column is wrong, a row is malformed, or nothing is left.
    """
    check_options(tokenization, prompt_truncation_mode, truncation_mode, score_tie_gap, max_completions)
    columns = columns_of_rows(dataset, dataset_name)
    check_ranking_columns(columns, dataset_name)
    streaming = isinstance(dataset, IterableDataset)
    if repeats is None:
        repeats = answers_repeat_prompts(dataset, columns)
    prepared = dataset.map(
        prepare_counted,
        with_indices=True,
        fn_kwargs={
            "dataset_name": dataset_name,
            "tokenizer": tokenizer,
            "cut": Cut.of(
                tokenization,
                max_length,
                max_prompt_length,
                prompt_truncation_mode,
                truncation_mode,
                leading_special_ids(tokenizer),
            ),
            "score_tie_gap": score_tie_gap,
            "max_completions": max_completions,
            "keep_all": keep_all,
            "alone": alone,
            "repeats": repeats,
            "streaming": streaming,
            "version": __version__,
        },
        **_types(dataset, columns),
        # `IterableDataset.map` takes neither
        **({} if streaming else {"num_proc": num_proc, "desc": f"Preparing {dataset_name} dataset"}),
    )
    if isinstance(prepared, Dataset):
        return _count(prepared, dataset_name, alone)
    usable = prepared.filter(_is_usable)
    if next(iter(usable), None) is None:
        raise ValueError(_nothing_left(dataset_name, f"row 0, {next(iter(prepared))[PROBLEM]}", alone))
    return usable.remove_columns(_COUNTED), RankingReport.uncounted()


def _types(dataset: Dataset | IterableDataset, columns: Sequence[str]) -> dict[str, Any]:
    made, removed = dict(_TYPES), list(PAIR_COLUMNS)
    if RANKING_REF_LOGPS_COLUMN in columns or set(REF_LOGPS_COLUMNS) <= set(columns):
        made[RANKING_REF_LOGPS_COLUMN] = List(Value("float64"))
    if not {"completions", "completion_ids"}.intersection(columns):
        removed.append("scores")  # of a pair, which is in order
    for name in ("completions", "scores"):
        of_column = (dataset.features or {}).get(name)
        if isinstance(of_column, List) and name not in removed:
            made[name] = List(of_column.feature)  # of any length: completions are left out
    return typed(dataset, made, removed)


def _is_usable(row: Mapping[str, Any]) -> bool:
    return not row[PROBLEM]


def _count(prepared: Dataset, dataset_name: str, alone: bool) -> tuple[Dataset, RankingReport]:
    num_rows = len(prepared)
    numbers, first_dropped = usable_rows(prepared)
    if not numbers:
        raise ValueError(_nothing_left(dataset_name, first_dropped, alone))
    if first_dropped:
        prepared = prepared.select(numbers)
    counted = prepared.select_columns([*_COUNTED, "ranks"])[:]
    sizes = [len(ranks) for ranks in counted["ranks"]]
    whys = zip(numbers, counted[WHY_DROPPED], strict=True)
    report = RankingReport(
        rows=len(numbers),
        dropped=num_rows - len(numbers),
        first_dropped=first_dropped,
        prompts_cut=sum(counted[PROMPT_CUT]),
        answers_cut=sum(counted[COMPLETIONS_CUT]),
        prompts_repeated=sum(counted[PROMPT_REPEATED]),
        completions=sum(sizes),
        completions_dropped=sum(counted[DROPPED]),
        first_completion_dropped=next((f"row {number}, {why}" for number, why in whys if why), ""),
        smallest=min(sizes),
        largest=max(sizes),
        tied=sum(max(ranks) + 1 < len(ranks) for ranks in counted["ranks"]),
    )
    return prepared.remove_columns(_COUNTED), report


def _nothing_left(dataset_name: str, first_dropped: str, alone: bool) -> str:
    needed = "rows with an answer" if alone else "rankings in which one completion is above another"
    return f"No row of the {dataset_name} dataset is usable ({first_dropped}). It needs {needed}."
