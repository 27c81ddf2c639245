"""What preparation does to one row: checks, order, tokens and cut, and what it leaves out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_dpo_ext.data.checks import preference_problem
from trl_dpo_ext.data.rankings.checks import check_ranking, check_tie_gap
from trl_dpo_ext.data.rankings.rows import (
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
from trl_dpo_ext.data.tokenization import cut_completions


__all__ = [
    "COMPLETIONS_CUT",
    "DROPPED",
    "PROBLEM",
    "PROMPT_CUT",
    "WHY_DROPPED",
    "check_options",
    "checked_ranking",
    "cut_options",
    "prepare_counted",
    "prepare_row",
]

logger = logging.get_logger(__name__)

# Columns of a prepared row that are only counted. A user's cannot have these names.
PROBLEM, DROPPED, WHY_DROPPED = "__problem", "__dropped", "__why_dropped"
PROMPT_CUT, COMPLETIONS_CUT = "__prompt_cut", "__completions_cut"


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
    Prepares one row as [`~trl_dpo_ext.data.rankings.preparation.prepare_rankings`] does for prediction, by options of
    the same names: nothing is left out.

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
    prepared = prepare_counted(
        dict(row),
        index,
        dataset_name=dataset_name,
        tokenizer=tokenizer,
        joint=joint,
        cut=None if joint else cut_options(max_length, max_prompt_length, prompt_truncation_mode),
        max_length=max_length,
        collator_keeps_start=truncation_mode == "keep_start",
        score_tie_gap=0.0,
        max_completions=None,
        keep_all=True,
        leading_ids=leading_ids,
        streaming=False,
    )
    return prepared["prompt_ids"], prepared["completion_ids"], prepared[PROMPT_CUT] or prepared[COMPLETIONS_CUT]


def cut_options(
    max_length: int | None, max_prompt_length: int | None, prompt_truncation_mode: str | None
) -> dict[str, Any] | None:
    """Arguments of [`~trl_dpo_ext.data.tokenization.cut_completions`]; `None` to cut nothing."""
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


def prepare_counted(
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
    """
    Prepares one row by the options of [`~trl_dpo_ext.data.rankings.preparation.prepare_rankings`].

    Returns:
        `dict`: The row with `prompt_ids`, `completion_ids` and `ranks`, and beside them why it is left out
        (`PROBLEM`), how many completions are and why the first (`DROPPED`, `WHY_DROPPED`), and what is cut
        (`PROMPT_CUT`, `COMPLETIONS_CUT`).

    Raises:
        ValueError: If the row is malformed.
    """
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
        PROBLEM: problem or "",
        DROPPED: len(completions.dropped),
        WHY_DROPPED: next(iter(completions.dropped.values()), ""),
        PROMPT_CUT: prompt_cut,
        COMPLETIONS_CUT: completions_cut,
    }


def _split_prompt(ranking: dict[str, Any], completions: _Completions) -> None:
    completions.drop(empty_completions(completions.left))
    if "prompt" not in ranking:
        ranking["prompt"], completions.values = split_shared_prompt(completions.values)
        completions.drop(empty_completions(completions.left))  # what was no more than the prompt


def check_options(
    tokenization: str,
    prompt_truncation_mode: str | None,
    truncation_mode: str,
    score_tie_gap: float,
    max_completions: int | None,
) -> None:
    """Raises a `ValueError` if an option has a value that does not exist."""
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
