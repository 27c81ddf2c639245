"""Preparation of one ranking: checks, order, tokenization, truncation, and completions that are left out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_dpo_ext.data.checks import (
    COMPLETIONS_CUT,
    DROPPED,
    PROBLEM,
    PROMPT_CUT,
    PROMPT_REPEATED,
    RANKING_REF_LOGPS_COLUMN,
    TOKENIZED_COLUMNS,
    WHY_DROPPED,
    check_present,
    check_ref_logps,
    check_split_prompt,
    preference_problem,
    settle_prompt,
)
from trl_dpo_ext.data.messages import is_empty
from trl_dpo_ext.data.prompts import warn_of_repeated_prompts
from trl_dpo_ext.data.rankings.best_completions import best_alone
from trl_dpo_ext.data.rankings.checks import check_ranking, check_tie_gap
from trl_dpo_ext.data.rankings.order import (
    as_ranking,
    best_first,
    dense_ranks,
    empty_completions,
    ranking_problem,
    repeated_completions,
    select_completions,
    split_shared_prompt,
)
from trl_dpo_ext.data.rankings.tokenization import PAIR, tokenize_ranking
from trl_dpo_ext.data.token_ids import check_ids
from trl_dpo_ext.data.tokenization import Cut


__all__ = [
    "PreparedRanking",
    "check_options",
    "checked_ranking",
    "prepare_counted",
    "prepare_ranking",
    "prepare_row",
]

logger = logging.get_logger(__name__)

_EMPTY_BEST = "its best completion is empty"


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
    Prepares one row as [`~trl_dpo_ext.data.rankings.dataset_preparation.prepare_rankings`] does for prediction, by
    options of the same names: nothing is left out.

    Args:
        row (`Mapping`): Row of any kind. Without `ranks` and `scores` its completions keep their order.
        index (`int`): Its number, for messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer.
        leading_ids (`list[int]`): Result of [`~trl_dpo_ext.data.tokenization.leading_special_ids`].
        tokenization (`str`): `"separate"` or `"joint"`.
        max_length (`int`, *optional*): Most tokens of a prompt with a completion.
        max_prompt_length (`int`, *optional*): Tokens that the prompt of a long row is truncated to.
        prompt_truncation_mode (`str`): Which end of a truncated prompt is kept.
        truncation_mode (`str`): Which end the collator will keep.
        dataset_name (`str`): Name used in messages.

    Returns:
        `tuple[list[int], list[list[int]], bool]`: Ids of the prompt and of each completion, and whether any was
        truncated (with `tokenization="joint"`: whether the collator will do so).

    Raises:
        ValueError: If the row is malformed.
    """
    cut = Cut.of(
        tokenization, max_length, max_prompt_length, prompt_truncation_mode, truncation_mode, tuple(leading_ids)
    )
    prepared = prepare_ranking(
        dict(row),
        index,
        dataset_name=dataset_name,
        tokenizer=tokenizer,
        cut=cut,
        keep_all=True,
        by_turn="chosen" not in row or not cut.joint,  # as `DPOPaperTrainer` does
    )
    prompt_ids, *completion_ids = prepared.cut_ids
    return prompt_ids, completion_ids, prepared.prompt_cut or prepared.completions_cut


@dataclass
class PreparedRanking:
    """
    A ranking as it is trained on; lists of completions are best first, without those left out.

    Args:
        row (`dict`): The row as a ranking, with its other columns.
        tokenized (`bool`): Whether it came as token ids.
        problem (`str`): Why training leaves the row out; what is below is then known up to there.
        full_prompt (`bool`): Whether that is because its prompt leaves no room for a completion.
        completions (`list`): Texts or message lists.
        ranks (`list[int]`): 0 for the best, equal for ties.
        prompt_ids (`list[int]`): Tokens of the prompt, not truncated.
        completion_ids (`list[list[int]]`): Tokens of the completions, not truncated.
        cut_ids (`list[list[int]]`): Tokens of the prompt and of the completions after truncation.
        prompt_cut (`bool`): Whether the prompt is truncated.
        completions_cut (`bool`): Whether a completion is truncated (by the collator: or the prompt).
        prompt_repeated (`bool`): Whether the completions repeated the prompt, which is taken once.
        dropped (`dict[int, str]`): Why completions are left out, by their places.
    """

    row: dict[str, Any]
    tokenized: bool
    problem: str = ""
    full_prompt: bool = False
    completions: list[Any] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    cut_ids: list[list[int]] = field(default_factory=list)
    prompt_cut: bool = False
    completions_cut: bool = False
    prompt_repeated: bool = False
    dropped: dict[int, str] = field(default_factory=dict)


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
    row: Mapping[str, Any],
    index: int,
    dataset_name: str,
    max_completions: int | None = None,
    repeats: bool = False,
) -> tuple[dict[str, Any], bool, bool]:
    """
    Checks a row of any kind and returns it as a ranking, its prompt taken once.

    Args:
        row (`Mapping`):
            Ranking, scored completions or preference pair, raw or tokenized.
        index (`int`):
            Its number, for messages.
        dataset_name (`str`):
            Name used in messages.
        max_completions (`int`, *optional*):
            Most completions that a row may have.
        repeats (`bool`, *optional*, defaults to `False`):
            Whether completions of text begin with the prompt of their row.

    Returns:
        `tuple[dict, bool, bool]`: The ranking, whether it already is token ids, and whether completions repeated the
        prompt.

    Raises:
        ValueError: If the row is malformed.
    """
    where = f"row {index} of the {dataset_name} dataset"
    tokenized = {"prompt_ids", "completion_ids"} <= row.keys() or set(TOKENIZED_COLUMNS) <= row.keys()
    is_pair = not {"completions", "completion_ids"} & row.keys()
    if is_pair:  # these errors name `chosen` and `rejected`
        check_present(row, TOKENIZED_COLUMNS if tokenized else (), where)
        for name in TOKENIZED_COLUMNS if tokenized else ():
            check_ids(row[name], name, where)
        if not tokenized:
            preference_problem(row, index, dataset_name)
        check_ref_logps(row, where)  # before `as_ranking` renames them
    ranking = as_ranking(row)
    if is_pair and not tokenized:
        settle_prompt(row.get("prompt"), {name: row[name] for name in PAIR}, where, repeats)
    check_ranking(ranking, where, max_completions)
    if tokenized:
        return ranking, tokenized, False
    given = ranking["completions"]
    names = PAIR if is_pair else [f"completions[{place}]" for place in range(len(given))]
    completions = dict(zip(names, given, strict=True))
    prompt, ranking["completions"], repeated = settle_prompt(row.get("prompt"), completions, where, repeats)
    if "prompt" in row:
        ranking["prompt"] = prompt
    return ranking, tokenized, repeated


def prepare_counted(
    row: dict[str, Any], index: int, *, streaming: bool, version: str, **options: Any
) -> dict[str, Any]:
    """
    The columns that preparation adds to a row or changes, and beside them what is counted: why it is left out
    (`PROBLEM`), how many of its completions are and why the first (`DROPPED`, `WHY_DROPPED`), and what is truncated
    or repeated.

    Args:
        row (`dict`):
            Row.
        index (`int`):
            Its number, for messages.
        streaming (`bool`):
            Whether to say, once, that something is left out.
        version (`str`):
            Version of this package, by which `datasets` tells what it has cached from what another one would make.
        options:
            Those of [`prepare_ranking`].
    """
    ranking = prepare_ranking(row, index, **options)
    if streaming and (ranking.problem or ranking.dropped):
        logger.warning_once(
            f"Rows of the {options['dataset_name']} stream that say nothing are left out, and so are empty "
            "completions and copies. In a stream they are not counted."
        )
    if streaming and ranking.prompt_repeated:
        warn_of_repeated_prompts(options["dataset_name"])
    # No text that preparation makes, such as a prompt split off: nothing reads it, and its type is not known
    names = {"completions", "scores"}.intersection(row) | {RANKING_REF_LOGPS_COLUMN}
    columns = {name: ranking.row[name] for name in names if name in ranking.row}
    prompt_ids, *completion_ids = [[0], [0]] if ranking.problem else ranking.cut_ids  # of one type in all rows
    return columns | {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "ranks": [0] if ranking.problem else ranking.ranks,
        PROBLEM: ranking.problem,
        DROPPED: len(ranking.dropped),
        WHY_DROPPED: next(iter(ranking.dropped.values()), ""),
        PROMPT_CUT: ranking.prompt_cut,
        COMPLETIONS_CUT: ranking.completions_cut,
        PROMPT_REPEATED: ranking.prompt_repeated,
    }


def prepare_ranking(
    row: dict[str, Any],
    index: int,
    *,
    dataset_name: str,
    tokenizer: PreTrainedTokenizerBase,
    cut: Cut,
    score_tie_gap: float = 0.0,
    max_completions: int | None = None,
    keep_all: bool = False,
    alone: bool = False,
    repeats: bool = False,
    by_turn: bool = True,
) -> PreparedRanking:
    """
    Prepares one row by the options of [`~trl_dpo_ext.data.rankings.dataset_preparation.prepare_rankings`].

    Args:
        row (`dict`): Row of any kind.
        index (`int`): Its number, for messages.
        dataset_name (`str`): Name of the data set, for messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer.
        cut ([`~trl_dpo_ext.data.tokenization.Cut`]): Rules of tokenization and truncation.
        score_tie_gap (`float`, *optional*): Difference up to which scores tie.
        max_completions (`int`, *optional*): Most completions that a row may have.
        keep_all (`bool`, *optional*): Leave nothing out.
        alone (`bool`, *optional*): Whether the best completion is taken, and learnt by itself.
        repeats (`bool`, *optional*): Whether completions of text begin with the prompt of their row.
        by_turn (`bool`, *optional*): Whether an implicit prompt of dialogue is split off after a turn.

    Raises:
        ValueError: If the row is malformed.
    """
    where = f"row {index} of the {dataset_name} dataset"
    ranking, tokenized, repeated = checked_ranking(row, index, dataset_name, max_completions, repeats)
    column = "completion_ids" if tokenized else "completions"
    if alone:
        ranking = best_alone(ranking, column, where, dataset_name, score_tie_gap)
    given = ranking[column]
    if keep_all and not given:
        raise ValueError(f"`completions` in {where} is empty. Drop such rows with `dataset.filter`.")
    order, ranks = best_first(ranking, len(given), score_tie_gap)
    completions = _Completions({place: given[place] for place in order}, ranks, keep_all or alone)
    prepared = PreparedRanking(ranking, tokenized, prompt_repeated=repeated, dropped=completions.dropped)

    if alone and not keep_all and (not given or not tokenized and is_empty(given[0])):
        prepared.problem = _EMPTY_BEST
        return prepared
    texts: dict[int, Any] = {}
    prompt_ids: list[int] = ranking.get("prompt_ids", [])
    if not tokenized:
        _split_prompt(ranking, completions, where, dataset_name, by_turn)
        texts = completions.left
        if completions.problem is None:
            left = ranking | {"completions": completions.values}
            prompt_ids, completions.values = tokenize_ranking(
                left,
                tokenizer,
                cut.leading_ids,
                where,
                joint=cut.joint,
                names=[_name_of(place, row) for place in texts],
            )
    if alone and not keep_all and completions.values[0] == [tokenizer.eos_token_id]:
        prepared.problem = _EMPTY_BEST
        return prepared
    uncut = completions.left
    if completions.problem is None:
        completions.drop(repeated_completions({place: tuple(ids) for place, ids in completions.left.items()}, ranks))
    if completions.problem is None:
        result = cut(prompt_ids, completions.values)
        completions.values = result.completion_ids
        prepared.prompt_cut, prepared.completions_cut = result.prompt_cut, result.completions_cut
        if result.problem and not keep_all:
            prepared.problem, prepared.full_prompt = result.problem, True
        else:
            again = repeated_completions(dict(zip(completions.left, result.left, strict=True)), ranks)
            completions.drop({place: f"{why} after truncation" for place, why in again.items()})
        places = list(completions.left)
        prepared.row = select_completions(ranking, places)
        prepared.ranks = dense_ranks([ranks[place] for place in places])
        prepared.prompt_ids, prepared.completion_ids = prompt_ids, [uncut[place] for place in places]
        prepared.cut_ids = [result.prompt_ids, *completions.values]
        if not tokenized:
            prepared.completions = prepared.row["completions"] = [texts[place] for place in places]
    prepared.problem = prepared.problem or completions.problem or ""
    prepared.dropped = completions.dropped
    return prepared


def _split_prompt(
    ranking: dict[str, Any], completions: _Completions, where: str, dataset_name: str, by_turn: bool
) -> None:
    completions.drop(empty_completions(completions.left))
    if "prompt" not in ranking:
        several = sum(not is_empty(value) for value in completions.values) > 1
        ranking["prompt"], completions.values = split_shared_prompt(completions.values, by_turn=by_turn)
        if several:
            check_split_prompt(ranking, ranking["prompt"], where, dataset_name)
        completions.drop(empty_completions(completions.left))  # what was no more than the prompt


def _name_of(place: int, row: Mapping[str, Any]) -> str:
    return f"completions[{place}]" if "completions" in row else PAIR[place]


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
