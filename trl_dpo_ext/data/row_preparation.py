"""Preparation of one row: checks, prompt, order, tokens, truncation, and the reasons for what is left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from trl_dpo_ext.data.checks import (
    COMPLETIONS_TRUNCATED,
    EMPTY_ANSWER,
    LEFT_OUT,
    PROBLEM,
    PROMPT_REPEATED,
    PROMPT_TRUNCATED,
    TOKENIZED_COLUMNS,
    WHY_LEFT_OUT,
    check_ref_logps,
    check_split_prompt,
    preference_problem,
    settle_prompt,
)
from trl_dpo_ext.data.messages import is_empty
from trl_dpo_ext.data.rankings.checks import check_ranking
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
from trl_dpo_ext.data.tokenization import Truncation, tokenizer_of


__all__ = ["PreparedRow", "prepare_row"]

_SAME_TOKENS = "both answers have the same tokens"
_EMPTY_BEST = "its best completion is empty"


@dataclass
class PreparedRow:
    """
    A row as it is trained on. Lists of completions are best first (of a pair, chosen first), without those left out.

    Args:
        row (`dict`): The row as a ranking, with its other columns.
        problem (`str`): Why training leaves the row out. What stands below is then known up to there.
        full_prompt (`bool`): Whether that is because its prompt leaves no room for a completion.
        prompt (`str` or `list`, *optional*): Prompt; `None` in a row of token ids.
        completions (`list`): Texts or message lists; empty in a row of token ids.
        ranks (`list[int]`): 0 for the best, equal for ties.
        prompt_ids (`list[int]`): Tokens of the prompt, not truncated.
        completion_ids (`list[list[int]]`): Tokens of the completions, not truncated.
        truncated_ids (`list[list[int]]`): Tokens of the prompt and of the completions after truncation.
        prompt_truncated (`bool`): Whether the prompt is truncated.
        completions_truncated (`bool`): Whether a completion is truncated (by the collator: or the prompt).
        prompt_repeated (`bool`): Whether the completions repeated the prompt, which is taken once.
        left_out (`dict[int, str]`): Why completions are left out, by their indices in the row.
    """

    row: dict[str, Any]
    problem: str = ""
    full_prompt: bool = False
    prompt: Any = None
    completions: list[Any] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    truncated_ids: list[list[int]] = field(default_factory=list)
    prompt_truncated: bool = False
    completions_truncated: bool = False
    prompt_repeated: bool = False
    left_out: dict[int, str] = field(default_factory=dict)

    @property
    def counted(self) -> dict[str, Any]:
        """What [`~trl_dpo_ext.data.preparation_report.PreparationCount`] counts, by the names of its columns."""
        return {
            PROBLEM: self.problem,
            LEFT_OUT: len(self.left_out),
            WHY_LEFT_OUT: next(iter(self.left_out.values()), ""),
            PROMPT_TRUNCATED: self.prompt_truncated,
            COMPLETIONS_TRUNCATED: self.completions_truncated,
            PROMPT_REPEATED: self.prompt_repeated,
        }


def prepare_row(
    row: Mapping[str, Any],
    index: int,
    *,
    dataset_name: str,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    truncation: Truncation,
    score_tie_gap: float = 0.0,
    max_completions: int | None = None,
    keep_all: bool = False,
    alone: bool = False,
    repeats: bool = False,
    ids_checked: bool = False,
) -> PreparedRow:
    """
    Prepares a row of any kind: a preference pair, a ranking, scored completions or a single completion, as text,
    messages or token ids.

    Args:
        row (`Mapping`): Row as [`~trl_dpo_ext.data.dataset_preparation.prepare_dataset`] accepts it.
        index (`int`): Its number, for messages.
        dataset_name (`str`): Name of the dataset, for messages.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]): Tokenizer or
            processor.
        truncation ([`~trl_dpo_ext.data.tokenization.Truncation`]): Rules of tokenization and truncation.
        score_tie_gap (`float`, *optional*, defaults to `0.0`): Difference up to which scores tie.
        max_completions (`int`, *optional*): Most completions that a row may have.
        keep_all (`bool`, *optional*, defaults to `False`): Leave nothing out, for prediction.
        alone (`bool`, *optional*, defaults to `False`): Take the best completion alone, for supervised fine-tuning.
        repeats (`bool`, *optional*, defaults to `False`): Whether completions of text begin with the prompt of their
            row, which is taken once.
        ids_checked (`bool`, *optional*, defaults to `False`): Whether the token ids of pairs have been checked.

    Raises:
        ValueError: If the row is malformed.
    """
    # Checks, and the prompt taken once
    where = f"row {index} of the {dataset_name} dataset"
    row = dict(row)  # the rows of `datasets` are slow to ask
    is_pair = {"completions", "completion_ids"}.isdisjoint(row)
    problem = None
    if is_pair:  # its messages name `chosen` and `rejected`
        problem = _check_pair(row, index, where, dataset_name, ids_checked)
    else:
        check_ranking(row, where, max_completions)
    ranking = as_ranking(row)
    tokenized = "completion_ids" in ranking
    given = ranking["completion_ids" if tokenized else "completions"]
    if keep_all and not given:
        raise ValueError(f"`completions` in {where} is empty. Drop such rows with `dataset.filter`.")
    names = PAIR if is_pair else [f"completions[{place}]" for place in range(len(given))]
    prepared = PreparedRow(ranking)
    if not tokenized:
        completions = dict(zip(names, given, strict=True))
        prompt, given, prepared.prompt_repeated = settle_prompt(row.get("prompt"), completions, where, repeats)
        if "prompt" in row:
            ranking["prompt"] = prompt
    if problem and not keep_all and not alone:
        prepared.problem = problem
        return prepared

    # Order, and a prompt that is the common start
    order, ranks = best_first(ranking, len(given), score_tie_gap)
    left = _Left({place: given[place] for place in order}, ranks, is_pair, keep_all or alone)
    if not tokenized:
        _split_prompt(ranking, left, where, dataset_name, by_turn=not (is_pair and truncation.joint))
        prepared.prompt = ranking["prompt"]
    if alone:
        left.completions = dict(islice(left.completions.items(), 1))
        best: Any = next(iter(left.completions.values()), [])
        if not keep_all and (not best if tokenized else is_empty(best)):
            prepared.problem = _EMPTY_BEST
            return prepared

    # Tokens
    texts, prompt_ids = left.completions, ranking.get("prompt_ids", [])
    if not tokenized and not left.problem:
        prompt_ids, ids = tokenize_ranking(
            ranking | {"completions": list(texts.values())},
            processing_class,
            truncation.leading_ids,
            where,
            joint=truncation.joint,
            names=[names[place] for place in texts],
        )
        left.completions = dict(zip(texts, ids, strict=True))
    if alone and not keep_all and [tokenizer_of(processing_class).eos_token_id] in left.completions.values():
        prepared.problem = _EMPTY_BEST
        return prepared
    if not left.problem:
        left.drop_copies(left.completions, _SAME_TOKENS)
    if left.problem:
        prepared.problem, prepared.left_out = left.problem, left.left_out
        return prepared

    # Truncation
    whole, result = left.completions, truncation(prompt_ids, list(left.completions.values()))
    left.completions = dict(zip(whole, result.completion_ids, strict=True))
    prepared.prompt_truncated, prepared.completions_truncated = result.prompt_truncated, result.completions_truncated
    if result.problem and not keep_all:
        prepared.problem, prepared.full_prompt = result.problem, True
    elif result.completions_truncated:
        after = f"both answers are the same after truncation to `max_length={truncation.max_length}`"
        left.drop_copies(dict(zip(whole, result.kept, strict=True)), after, " after truncation")
    prepared.left_out = left.left_out
    if left.problem:
        prepared.problem = left.problem
        return prepared

    places = list(left.completions)
    if places != list(range(len(given))):  # else they are all left, and best first
        prepared.row, ranks = select_completions(ranking, places), dense_ranks([ranks[place] for place in places])
    prepared.ranks = ranks
    prepared.prompt_ids, prepared.completion_ids = prompt_ids, [whole[place] for place in places]
    prepared.truncated_ids = [result.prompt_ids, *left.completions.values()]
    if not tokenized:
        prepared.completions = prepared.row["completions"] = [texts[place] for place in places]
    return prepared


@dataclass
class _Left:
    """The completions of a row that are left, best first and by their indices in it, and why the others are not."""

    completions: dict[int, Any]
    ranks: list[int]  # of every index
    is_pair: bool
    keep_all: bool
    left_out: dict[int, str] = field(default_factory=dict)
    of_pair: str = ""  # why a pair is left out

    def drop(self, reasons: Mapping[int, str], of_pair: str) -> None:
        if reasons and not self.keep_all:
            self.completions = {place: value for place, value in self.completions.items() if place not in reasons}
            self.left_out |= reasons
            self.of_pair = self.of_pair or of_pair

    def drop_empty(self) -> None:
        self.drop(empty_completions(self.completions), EMPTY_ANSWER)

    def drop_copies(self, ids: Mapping[int, list[int]], of_pair: str, when: str = "") -> None:
        if any(one == other for one, other in combinations(ids.values(), 2)):
            copies = repeated_completions({place: tuple(values) for place, values in ids.items()}, self.ranks)
            self.drop({place: f"{why}{when}" for place, why in copies.items()}, of_pair)

    @property
    def problem(self) -> str:
        """Why the row carries no preference."""
        if self.keep_all:
            return ""
        if self.is_pair:
            return self.of_pair
        return ranking_problem([self.ranks[place] for place in self.completions], self.left_out) or ""


def _check_pair(row: Mapping[str, Any], index: int, where: str, dataset_name: str, ids_checked: bool) -> str | None:
    """Checks a preference pair; returns why it carries no preference, if that shows before it is tokenized."""
    problem = None
    if not set(TOKENIZED_COLUMNS) <= row.keys():
        problem = preference_problem(row, index, dataset_name)
    elif not ids_checked:
        for name in TOKENIZED_COLUMNS:
            check_ids(row[name], name, where)
    check_ref_logps(row, where)
    return problem


def _split_prompt(ranking: dict[str, Any], left: _Left, where: str, dataset_name: str, by_turn: bool) -> None:
    left.drop_empty()
    if "prompt" in ranking:
        return
    values = list(left.completions.values())
    ranking["prompt"], rest = split_shared_prompt(values, by_turn=by_turn)
    if sum(not is_empty(value) for value in values) > 1:
        check_split_prompt(ranking, ranking["prompt"], where, dataset_name)
    left.completions = dict(zip(left.completions, rest, strict=True))
    left.drop_empty()  # what was no more than the prompt
