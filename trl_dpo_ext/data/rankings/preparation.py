"""From a raw data set of rankings to checked, sorted, tokenised and cut rows, with a count of everything changed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_dpo_ext.data.checks import preference_problem
from trl_dpo_ext.data.preparation import columns_of
from trl_dpo_ext.data.rankings.checks import check_ranking, check_ranking_columns, check_tie_gap
from trl_dpo_ext.data.rankings.report import RankingReport
from trl_dpo_ext.data.rankings.rows import (
    PAIR_COLUMNS,
    as_ranking,
    best_first,
    dense_ranks,
    empty_completions,
    ranking_problem,
    repeated_completions,
    select_completions,
    split_shared_prompt,
)
from trl_dpo_ext.data.rankings.tokenization import tokenize_ranking
from trl_dpo_ext.data.tokenization import cut_completions, leading_special_ids


__all__ = ["RankingReport", "checked_ranking", "prepare_rankings", "prepare_row"]

logger = logging.get_logger(__name__)

# Columns of a prepared row that are only counted. A user's cannot have these names.
_PROBLEM, _DROPPED, _WHY_DROPPED = "__problem", "__dropped", "__why_dropped"
_PROMPT_CUT, _COMPLETIONS_CUT = "__prompt_cut", "__completions_cut"
_COUNTED = [_PROBLEM, _DROPPED, _WHY_DROPPED, _PROMPT_CUT, _COMPLETIONS_CUT]


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
    dataset_name: str = "train",
    num_proc: int | None = None,
) -> tuple[Dataset | IterableDataset, RankingReport]:
    """
    Checks, sorts, tokenises and cuts rankings, scored completions or preference pairs. Rows that already are token ids
    are checked, sorted and cut.

    Rows come out best first, with ranks without gaps. Left out, and counted, are
    - empty completions;
    - completions whose tokens another one has as well, see
        [`~trl_dpo_ext.data.rankings.rows.repeated_completions`]: one stays if their place is clear, else none;
    - rows that then say nothing: fewer than two completions, or all tied;
    - with `tokenization="joint"` and `truncation_mode="keep_start"`, rows whose prompt fills `max_length`, as in TRL.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows with `completions` (text or messages) and optionally `prompt`, `ranks` or `scores`, `ref_logps`,
            `tools` and `chat_template_kwargs`; or with `chosen` and `rejected`; or tokenised.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer. It needs an EOS token for text and a chat template for messages.
        tokenization (`str`, *optional*, defaults to `"separate"`):
            `"separate"`: prompt and completions of plain text tokenised apart, and the authors' cut. `"joint"`: TRL's
            tokens, and TRL's cut, which is left to `DataCollatorForRanking(max_length=..., truncation_mode=...)`.
        max_length (`int`, *optional*):
            Most tokens of a prompt with a completion. By default nothing is cut.
        max_prompt_length (`int`, *optional*):
            With `"separate"`: tokens an over-long row's prompt is cut to. Defaults to half of `max_length`.
        prompt_truncation_mode (`str`, *optional*, defaults to `"keep_end"`):
            With `"separate"`: which end of a cut prompt is kept, `"keep_end"` or `"keep_start"`.
        truncation_mode (`str`, *optional*, defaults to `"keep_start"`):
            With `"joint"`: which end of an over-long prompt with completion the collator will keep.
        score_tie_gap (`float`, *optional*, defaults to `0.0`):
            Difference up to which scores tie. See [`~trl_dpo_ext.data.rankings.rows.ranks_from_scores`].
        max_completions (`int`, *optional*):
            Most completions a row may have; a longer row is an error.
        keep_all (`bool`, *optional*, defaults to `False`):
            Whether nothing is left out, for prediction: as many rows come out as go in, with all their completions.
        dataset_name (`str`, *optional*, defaults to `"train"`):
            Name used in messages.
        num_proc (`int`, *optional*):
            Processes to use.

    Returns:
        `tuple`: Rows with `prompt_ids`, `completion_ids` (K lists), `ranks` (K whole numbers) and what else they had,
        and a [`RankingReport`].

    Raises:
        ValueError: If an option or a column is wrong, a row is malformed, or nothing is left.
    """
    _check_options(tokenization, prompt_truncation_mode, truncation_mode, score_tie_gap, max_completions)
    columns = columns_of(dataset)
    check_ranking_columns(columns, dataset_name)
    if isinstance(dataset, Dataset) and not len(dataset):
        raise ValueError(f"The {dataset_name} dataset has no row.")

    joint, streaming = tokenization == "joint", isinstance(dataset, IterableDataset)
    cut = None if joint else _cut_options(max_length, max_prompt_length, prompt_truncation_mode)
    prepared = dataset.map(
        _prepare_row,
        with_indices=True,
        fn_kwargs={
            "dataset_name": dataset_name,
            "tokenizer": tokenizer,
            "joint": joint,
            "cut": cut,
            "max_length": max_length,
            "collator_keeps_start": truncation_mode == "keep_start",
            "score_tie_gap": score_tie_gap,
            "max_completions": max_completions,
            "keep_all": keep_all,
            "leading_ids": leading_special_ids(tokenizer),
            "streaming": streaming,
        },
        remove_columns=[name for name in columns if name in PAIR_COLUMNS],
        # `IterableDataset.map` takes neither
        **({} if streaming else {"num_proc": num_proc, "desc": f"Preparing {dataset_name} dataset"}),
    )
    if isinstance(prepared, Dataset):
        return _count(prepared, dataset_name)
    usable = prepared.filter(_is_usable)
    if next(iter(usable), None) is None:
        raise ValueError(_nothing_left(dataset_name, f"row 0, {next(iter(prepared))[_PROBLEM]}"))
    return usable.remove_columns(_COUNTED), RankingReport.uncounted()


def prepare_row(
    row: Mapping[str, Any],
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    *,
    leading_ids: list[int],
    tokenization: str = "separate",
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    prompt_truncation_mode: str | None = "keep_end",
    truncation_mode: str = "keep_start",
    dataset_name: str = "test",
) -> tuple[list[int], list[list[int]], bool]:
    """
    Prepares one row as [`prepare_rankings`] does for prediction, by options of the same names: nothing is left out.

    Args:
        row (`Mapping`): Row of any kind. Without `ranks` and `scores` its completions keep their order.
        index (`int`): Its number, for messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer.
        leading_ids (`list[int]`): Result of [`~trl_dpo_ext.data.tokenization.leading_special_ids`].
        tokenization (`str`): `"separate"` or `"joint"`.
        max_length (`int`, *optional*): Most tokens of a prompt with a completion.
        max_prompt_length (`int`, *optional*): Tokens an over-long row's prompt is cut to.
        prompt_truncation_mode (`str`): Which end of a cut prompt is kept.
        truncation_mode (`str`): Which end the collator will keep.
        dataset_name (`str`): Name used in messages.

    Returns:
        `tuple[list[int], list[list[int]], bool]`: Ids of the prompt, and of each completion; and whether a cut was
        made (with `tokenization="joint"`: whether the collator will make one).

    Raises:
        ValueError: If the row is malformed.
    """
    joint = tokenization == "joint"
    prepared = _prepare_row(
        dict(row),
        index,
        dataset_name=dataset_name,
        tokenizer=tokenizer,
        joint=joint,
        cut=None if joint else _cut_options(max_length, max_prompt_length, prompt_truncation_mode),
        max_length=max_length,
        collator_keeps_start=truncation_mode == "keep_start",
        score_tie_gap=0.0,
        max_completions=None,
        keep_all=True,
        leading_ids=leading_ids,
        streaming=False,
    )
    return prepared["prompt_ids"], prepared["completion_ids"], prepared[_PROMPT_CUT] or prepared[_COMPLETIONS_CUT]


def _cut_options(
    max_length: int | None, max_prompt_length: int | None, prompt_truncation_mode: str | None
) -> dict[str, Any] | None:
    if max_length is None:
        return None
    if max_prompt_length is None:
        max_prompt_length = max_length // 2
    keep_end = prompt_truncation_mode == "keep_end"
    return {"max_length": max_length, "max_prompt_length": max_prompt_length, "keep_end": keep_end}


@dataclass
class _Completions:
    """What is left of a row's completions, by their place in it and best first, and why others are not."""

    left: dict[int, Any]
    ranks: list[int]  # of every place
    keep_all: bool
    dropped: dict[int, str] = field(default_factory=dict)

    @property
    def values(self) -> list[Any]:
        return list(self.left.values())

    @values.setter
    def values(self, values: Iterable[Any]) -> None:
        self.left = dict(zip(self.left, values, strict=True))

    def drop(self, reasons: Mapping[int, str]) -> None:
        if not self.keep_all:
            self.left = {place: value for place, value in self.left.items() if place not in reasons}
            self.dropped |= reasons

    @property
    def problem(self) -> str | None:
        """Why what is left says nothing."""
        if self.keep_all:
            return None
        return ranking_problem([self.ranks[place] for place in self.left], self.dropped)


def checked_ranking(
    row: Mapping[str, Any], index: int, dataset_name: str, max_completions: int | None = None
) -> tuple[dict[str, Any], bool]:
    """
    Checks a row of any kind and returns it as a ranking, and whether it already is token ids.

    Args:
        row (`Mapping`):
            Ranking, scored completions or preference pair, raw or tokenised.
        index (`int`):
            Its number, for messages.
        dataset_name (`str`):
            Name used in messages.
        max_completions (`int`, *optional*):
            Most completions that a row may have.

    Raises:
        ValueError: If the row is malformed.
    """
    tokenized = "prompt_ids" in row and ("completion_ids" in row or "chosen_ids" in row)
    if not tokenized and "completions" not in row:
        preference_problem(row, index, dataset_name)  # its errors name `chosen` and `rejected`
    ranking = as_ranking(row)
    check_ranking(ranking, f"row {index} of the {dataset_name} dataset", max_completions)
    return ranking, tokenized


def _prepare_row(
    row: dict[str, Any],
    index: int,
    *,
    dataset_name: str,
    tokenizer: PreTrainedTokenizerBase,
    joint: bool,
    cut: dict[str, Any] | None,
    max_length: int | None,
    collator_keeps_start: bool,
    score_tie_gap: float,
    max_completions: int | None,
    keep_all: bool,
    leading_ids: list[int],
    streaming: bool,
) -> dict[str, Any]:
    where = f"row {index} of the {dataset_name} dataset"
    ranking, tokenized = checked_ranking(row, index, dataset_name, max_completions)
    given = ranking["completion_ids" if tokenized else "completions"]
    if keep_all and not given:
        raise ValueError(f"`completions` in {where} is empty. Drop such rows with `dataset.filter`.")
    order, ranks = best_first(ranking, len(given), score_tie_gap)
    completions = _Completions({place: given[place] for place in order}, ranks, keep_all)

    if not tokenized:
        _split_prompt(ranking, completions)
        texts = completions.left
        if completions.problem is None:
            left = ranking | {"completions": completions.values}
            ranking["prompt_ids"], completions.values = tokenize_ranking(
                left, tokenizer, leading_ids, where, joint=joint
            )
    problem = completions.problem
    prompt_cut = completions_cut = False
    if problem is None:
        completions.drop(repeated_completions({place: tuple(ids) for place, ids in completions.left.items()}, ranks))
        problem = completions.problem
    if problem is None and cut is not None:
        ranking["prompt_ids"], completions.values, prompt_cut, completions_cut = cut_completions(
            ranking["prompt_ids"], completions.values, leading_ids=leading_ids, **cut
        )
    elif problem is None and max_length is not None:  # the collator cuts
        num_prompt = len(ranking["prompt_ids"])
        completions_cut = num_prompt + max(map(len, completions.values)) > max_length
        if num_prompt >= max_length and collator_keeps_start and not keep_all:
            problem = f"its prompt fills `max_length={max_length}`"

    if streaming and (problem or completions.dropped):
        logger.warning_once(
            f"Rows of the {dataset_name} stream that say nothing are left out, and so are empty completions and "
            "copies. In a stream they are not counted."
        )
    if problem is None:
        ranking = select_completions(ranking, list(completions.left))
        if not tokenized:
            ranking["completions"] = [texts[place] for place in completions.left]
        ranking["completion_ids"] = completions.values
        ranking["ranks"] = dense_ranks([ranks[place] for place in completions.left])
    else:  # the row is filtered out; these keep the columns' types
        ranking |= {"prompt_ids": [0], "completion_ids": [[0]], "ranks": [0]}
    return ranking | {
        _PROBLEM: problem or "",
        _DROPPED: len(completions.dropped),
        _WHY_DROPPED: next(iter(completions.dropped.values()), ""),
        _PROMPT_CUT: prompt_cut,
        _COMPLETIONS_CUT: completions_cut,
    }


def _split_prompt(ranking: dict[str, Any], completions: _Completions) -> None:
    completions.drop(empty_completions(completions.left))
    if "prompt" not in ranking:
        ranking["prompt"], completions.values = split_shared_prompt(completions.values)
        completions.drop(empty_completions(completions.left))  # what was no more than the prompt


def _is_usable(row: Mapping[str, Any]) -> bool:
    return not row[_PROBLEM]


def _count(prepared: Dataset, dataset_name: str) -> tuple[Dataset, RankingReport]:
    problems = prepared[_PROBLEM][:]
    numbers = [number for number, problem in enumerate(problems) if not problem]
    first_dropped = next((f"row {number}, {problem}" for number, problem in enumerate(problems) if problem), "")
    if not numbers:
        raise ValueError(_nothing_left(dataset_name, first_dropped))
    if first_dropped:
        prepared = prepared.select(numbers)
    counted = prepared.select_columns([*_COUNTED, "ranks"])[:]
    sizes = [len(ranks) for ranks in counted["ranks"]]
    whys = zip(numbers, counted[_WHY_DROPPED], strict=True)
    report = RankingReport(
        rows=len(numbers),
        dropped=len(problems) - len(numbers),
        first_dropped=first_dropped,
        prompts_cut=sum(counted[_PROMPT_CUT]),
        answers_cut=sum(counted[_COMPLETIONS_CUT]),
        completions=sum(sizes),
        completions_dropped=sum(counted[_DROPPED]),
        first_completion_dropped=next((f"row {number}, {why}" for number, why in whys if why), ""),
        smallest=min(sizes),
        largest=max(sizes),
        tied=sum(max(ranks) + 1 < len(ranks) for ranks in counted["ranks"]),
    )
    return prepared.remove_columns(_COUNTED), report


def _nothing_left(dataset_name: str, first_dropped: str) -> str:
    return (
        f"No row of the {dataset_name} dataset is usable ({first_dropped}). It needs rankings in which one completion "
        "is above another."
    )


def _check_options(
    tokenization: str,
    prompt_truncation_mode: str | None,
    truncation_mode: str,
    score_tie_gap: float,
    max_completions: int | None,
) -> None:
    modes = ("keep_start", "keep_end")
    for name, value, choices in (
        ("tokenization", tokenization, ("separate", "joint")),
        ("prompt_truncation_mode", prompt_truncation_mode or "keep_end", modes),
        ("truncation_mode", truncation_mode, modes),
    ):
        if value not in choices:
            raise ValueError(f"`{name}={value!r}` does not exist. Choose one of {', '.join(map(repr, choices))}.")
    check_tie_gap(score_tie_gap)
    if max_completions is not None and max_completions < 2:
        raise ValueError(f"`max_completions={max_completions}` must be 2 or more: a ranking compares completions.")
