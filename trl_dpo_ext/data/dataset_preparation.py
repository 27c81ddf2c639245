"""Preparation of a dataset: checked, sorted, tokenized and truncated rows, and a count of every change."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from trl_dpo_ext import __version__
from trl_dpo_ext.data.checks import (
    COUNTED,
    LEFT_OUT,
    PROBLEM,
    RANKING_REF_LOGPS_COLUMN,
    REF_LOGPS_COLUMNS,
    TOKENIZED_COLUMNS,
    WHY_LEFT_OUT,
    check_columns,
)
from trl_dpo_ext.data.columns import columns_of, columns_of_rows, typed
from trl_dpo_ext.data.preparation_report import DataReport, PreparationCount, RankingReport
from trl_dpo_ext.data.prompts import answers_repeat_prompts, warn_of_repeated_prompts
from trl_dpo_ext.data.rankings.checks import check_ranking_columns, check_ranking_options
from trl_dpo_ext.data.rankings.order import PAIR_COLUMNS
from trl_dpo_ext.data.row_preparation import prepare_row
from trl_dpo_ext.data.token_ids import suspects
from trl_dpo_ext.data.tokenization import Truncation


__all__ = ["has_ref_logps", "prepare_dataset"]

logger = logging.get_logger(__name__)

_COUNTED = list(COUNTED)
_IDS = List(Value("int64"))
_COUNTED_TYPES = {
    **dict.fromkeys(COUNTED, Value("bool")),
    **{PROBLEM: Value("string"), LEFT_OUT: Value("int64"), WHY_LEFT_OUT: Value("string")},
}


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    *,
    as_pairs: bool = False,
    score_tie_gap: float = 0.0,
    max_completions: int | None = None,
    keep_all: bool = False,
    alone: bool = False,
    repeats: bool | None = None,
    dataset_name: str = "train",
    num_proc: int | None = None,
    **options: Any,
) -> tuple[Dataset | IterableDataset, DataReport]:
    """
    Checks, sorts, tokenizes and truncates preference pairs, rankings or scored completions. Rows of token ids are only
    checked, sorted and truncated.

    Rows come out best first, with ranks without gaps. Left out, and counted, are
    - empty completions;
    - completions whose tokens another one has as well, before or after truncation, see
        [`~trl_dpo_ext.data.rankings.order.repeated_completions`]: one stays if their place is clear, else none;
    - rows that then carry no preference: fewer than two completions, or all tied;
    - with `tokenization="joint"` and `truncation_mode="keep_start"`, rows whose prompt fills `max_length`, as in TRL.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows with `completions` (text or messages) and optionally `prompt`, `ranks` or `scores`, `ref_logps`,
            `tools` and `chat_template_kwargs`; or with `chosen` and `rejected`; or tokenized.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer or processor. It needs an EOS token for text and a chat template for messages.
        as_pairs (`bool`, *optional*, defaults to `False`):
            Whether rows are pairs and get TRL's token columns, `chosen_ids` and `rejected_ids`, in place of
            `completion_ids` and `ranks`.
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
        options:
            `tokenization`, `max_length`, `max_prompt_length`, `prompt_truncation_mode`, `truncation_mode`: the
            trainers' options, see [`~trl_dpo_ext.data.options.RowOptions`]. By default, nothing is truncated. With
            `tokenization="joint"` truncation is left to the collator.

    Returns:
        `tuple`: Rows with `prompt_ids`, `completion_ids` (K lists), `ranks` (K whole numbers) and what else they had
        (of pairs without the answers' text), or pairs as described above; and a [`DataReport`] or [`RankingReport`].

    Raises:
        TypeError: If `dataset` is no dataset.
        ValueError: If an option or a column is wrong, a row is malformed, or nothing is left.
    """
    check_ranking_options(score_tie_gap, max_completions)
    truncation = Truncation.of(processing_class, **options)
    columns = columns_of_rows(dataset, dataset_name)
    (check_columns if as_pairs else check_ranking_columns)(columns, dataset_name)
    streaming = isinstance(dataset, IterableDataset)
    prepared = dataset.map(
        _prepared_columns,
        with_indices=True,
        fn_kwargs={
            "as_pairs": as_pairs,
            "streaming": streaming,
            "version": __version__,
            "dataset_name": dataset_name,
            "processing_class": processing_class,
            "truncation": truncation,
            "score_tie_gap": score_tie_gap,
            "max_completions": max_completions,
            "keep_all": keep_all,
            "alone": alone,
            "repeats": answers_repeat_prompts(dataset, columns) if repeats is None else repeats,
            "ids_checked": _ids_are_good(dataset, columns),
        },
        **_types(dataset, columns, as_pairs),
        # `IterableDataset.map` takes neither
        **({} if streaming else {"num_proc": num_proc, "desc": f"Preparing {dataset_name} dataset"}),
    )
    if isinstance(prepared, Dataset):
        count = _count(prepared, as_pairs)
        report = count.report()
        if not count.usable:
            raise ValueError(_nothing_left(dataset_name, report.first_dropped, as_pairs, alone))
        left = prepared.select(count.usable) if report.dropped else prepared
        return left.remove_columns(_COUNTED), report
    usable = prepared.filter(_is_usable)
    if next(iter(usable), None) is None:
        first = f"row 0, {next(iter(prepared))[PROBLEM]}"
        raise ValueError(_nothing_left(dataset_name, first, as_pairs, alone))
    return usable.remove_columns(_COUNTED), (DataReport if as_pairs else RankingReport).uncounted()


def has_ref_logps(dataset: Dataset | IterableDataset, columns: Sequence[str] = REF_LOGPS_COLUMNS) -> bool:
    """Whether the rows contain their own reference log-probabilities, in `columns` or as pairs do."""
    found = set(columns_of(dataset))
    return set(columns) <= found or set(REF_LOGPS_COLUMNS) <= found


def _prepared_columns(
    row: dict[str, Any], index: int, *, as_pairs: bool, streaming: bool, version: str, **options: Any
) -> dict[str, Any]:
    """
    The columns that preparation adds to a row or changes, and those that are only counted.

    By `version`, that of this package, `datasets` tells what it has cached from what another one would make.
    """
    prepared = prepare_row(row, index, **options)
    name = options["dataset_name"]
    if streaming and (prepared.problem or prepared.left_out):
        what = f": {prepared.problem}" if as_pairs else ", and so are empty completions and copies"
        logger.warning_once(
            f"Rows of the {name} stream that carry no preference are left out{what}. In a stream they are not counted."
        )
    if streaming and prepared.prompt_repeated:
        warn_of_repeated_prompts(name)
    ids = prepared.truncated_ids
    if prepared.problem:  # a row that is left out keeps the types of the columns
        ids = [[0], [0], [0]]
    if as_pairs:
        return dict(zip(TOKENIZED_COLUMNS, ids, strict=True)) | prepared.counted
    # No text that preparation makes, such as a prompt split off: nothing reads it, and its type is not known
    names = {"completions", "scores"}.intersection(row) | {RANKING_REF_LOGPS_COLUMN}
    columns = {name: prepared.row[name] for name in names if name in prepared.row}
    ranks = [0] if prepared.problem else prepared.ranks
    return columns | {"prompt_ids": ids[0], "completion_ids": ids[1:], "ranks": ranks} | prepared.counted


def _types(dataset: Dataset | IterableDataset, columns: Sequence[str], as_pairs: bool) -> dict[str, Any]:
    if as_pairs:
        return typed(dataset, dict.fromkeys(TOKENIZED_COLUMNS, _IDS) | _COUNTED_TYPES)
    made = {"prompt_ids": _IDS, "completion_ids": List(_IDS), "ranks": _IDS, **_COUNTED_TYPES}
    removed = list(PAIR_COLUMNS)
    if RANKING_REF_LOGPS_COLUMN in columns or set(REF_LOGPS_COLUMNS) <= set(columns):
        made[RANKING_REF_LOGPS_COLUMN] = List(Value("float64"))
    if not {"completions", "completion_ids"}.intersection(columns):
        removed.append("scores")  # of a pair, which is in order
    for name in ("completions", "scores"):
        of_column = (dataset.features or {}).get(name)
        if isinstance(of_column, List) and name not in removed:
            made[name] = List(of_column.feature)  # of any length: completions are left out
    return typed(dataset, made, removed)


def _ids_are_good(dataset: Dataset | IterableDataset, columns: Sequence[str]) -> bool:
    """Whether rows are pairs of token ids in which there is nothing to find; otherwise each row is checked."""
    if isinstance(dataset, IterableDataset) or not set(TOKENIZED_COLUMNS) <= set(columns):
        return False
    return not suspects(dataset, TOKENIZED_COLUMNS)


def _is_usable(row: Mapping[str, Any]) -> bool:
    return not row[PROBLEM]


def _count(prepared: Dataset, as_pairs: bool) -> PreparationCount:
    count = PreparationCount(of_rankings=not as_pairs)
    columns = prepared.select_columns(_COUNTED if as_pairs else [*_COUNTED, "ranks"])[:]
    columns.setdefault("ranks", [[0, 1]] * len(prepared))
    for number, values in enumerate(zip(*columns.values(), strict=True)):
        count.add(number, dict(zip(columns, values, strict=True)))
    return count


def _nothing_left(dataset_name: str, first_dropped: str, as_pairs: bool, alone: bool) -> str:
    start = f"No row of the {dataset_name} dataset is usable ({first_dropped})"
    if "prompt fills" in first_dropped:
        return f"{start}: no answer is left. Raise it."
    if as_pairs:
        return f"{start}. It needs pairs of two different answers."
    needed = "rows with an answer" if alone else "rankings in which one completion is above another"
    return f"{start}. It needs {needed}."
