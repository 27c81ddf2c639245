"""A row prepared as in training: an error, a dropped row, or token ids and their truncation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_dpo_ext.data.checks import TOKENIZED_COLUMNS
from trl_dpo_ext.data.messages import text_of
from trl_dpo_ext.data.pair_preparation import PreparedPair, prepare_pair
from trl_dpo_ext.data.rankings.order import split_shared_prompt
from trl_dpo_ext.data.rankings.ranking_preparation import (
    PreparedRanking,
    check_options,
    checked_ranking,
    prepare_ranking,
)
from trl_dpo_ext.data.tokenization import Cut, leading_special_ids


__all__ = ["PreparedRow", "RowPreparation", "key_of", "text_of"]


@dataclass
class PreparedRow:
    """
    A row prepared as in training. Lists of completions are best first, without dropped ones.

    Args:
        index (`int`): Index of the row, from 0.
        raw (`Mapping`): Row of the dataset.
        problem (`str`): Reason why training drops the row. Then the fields below are unknown, unless the prompt is too
            long.
        full_prompt (`bool`): Whether the reason is that the prompt is too long.
        prompt (`str` or `list`, *optional*): Prompt; `None` in a row of token ids.
        completions (`list`): Texts or message lists; empty in a row of token ids.
        ranks (`list[int]`): 0 for the best, equal for ties.
        prompt_ids (`list[int]`): Tokens of the prompt, not truncated.
        completion_ids (`list[list[int]]`): Tokens of the completions, not truncated.
        cut_ids (`list[list[int]]`): Tokens of the prompt and of the completions as training takes them.
        left_out (`int`): Number of dropped completions.
        why_left_out (`str`): Reason for the first of them.
        prompt_cut (`bool`): Whether training truncates the prompt.
        completions_cut (`bool`): Whether training truncates a completion (with `tokenization="joint"`: or the prompt).
        best_end_cut (`bool`): Whether the best completion loses its last token.
        prompt_repeated (`bool`): Whether the completions repeated the prompt, which is removed from them.
    """

    index: int
    raw: Mapping[str, Any]
    problem: str = ""
    full_prompt: bool = False
    prompt: Any = None
    completions: list[Any] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    cut_ids: list[list[int]] = field(default_factory=list)
    left_out: int = 0
    why_left_out: str = ""
    prompt_cut: bool = False
    completions_cut: bool = False
    best_end_cut: bool = False
    prompt_repeated: bool = False

    @property
    def is_text(self) -> bool:
        """Whether prompt and completions are plain text."""
        return isinstance(self.prompt, str)

    @property
    def is_chat(self) -> bool:
        """Whether prompt and completions are messages."""
        return isinstance(self.prompt, list)

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """All texts and message contents with their places: `prompt`, `answer 0` (the best) and so on."""
        if self.prompt is None:
            return []
        sides = {"prompt": self.prompt} | {f"answer {k}": value for k, value in enumerate(self.completions)}
        return [
            (place, text)
            for place, value in sides.items()
            for text in ([value] if isinstance(value, str) else (text_of([message]) for message in value))
        ]

    @cached_property
    def whole_text(self) -> str:
        """All texts in one, for a quick search."""
        return "\n".join(text for _, text in self.texts)

    @cached_property
    def prompt_key(self) -> int:
        """Equal for equal prompts."""
        return key_of(self.prompt_ids if self.prompt is None else self.prompt)

    @cached_property
    def completion_keys(self) -> list[int]:
        """Equal for equal completions."""
        return [key_of(value) for value in self.completions or self.completion_ids]


def key_of(value: Any) -> int:
    """Returns a number that is equal for equal texts, message lists or token ids."""
    return hash(value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str))


class RowPreparation:
    """
    Prepares rows as in training, with options of the same names, and keeps them as they were before truncation.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer.
        columns (`Sequence[str]`): Columns of the dataset.
        dataset_name (`str`): Name of the dataset in messages.
        tokenization (`str`): `"separate"` or `"joint"`.
        max_length (`int`, *optional*): Maximum number of tokens of a prompt with a completion.
        max_prompt_length (`int`, *optional*): Number of tokens to which the prompt of a row that is too long is
            truncated.
        prompt_truncation_mode (`str`, *optional*): Which end of a truncated prompt is kept.
        truncation_mode (`str`): With `"joint"`: which end TRL's collator keeps.
        score_tie_gap (`float`): Difference up to which scores tie.
        max_completions (`int`, *optional*): Maximum number of completions of a row.
        alone (`bool`): Whether only the best completion is learned, as by
            [`~trl_dpo_ext.trainers.preferred_ft_trainer.PreferredFTTrainer`].
        repeats (`bool`): Whether text answers start with the prompt of their row, which is then removed from them.

    Raises:
        ValueError: If an option has an unknown value.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        columns: Sequence[str],
        dataset_name: str,
        *,
        tokenization: str = "separate",
        max_length: int | None = None,
        max_prompt_length: int | None = None,
        prompt_truncation_mode: str | None = None,
        truncation_mode: str = "keep_start",
        score_tie_gap: float = 0.0,
        max_completions: int | None = None,
        alone: bool = False,
        repeats: bool = False,
    ) -> None:
        check_options(tokenization, prompt_truncation_mode, truncation_mode, score_tie_gap, max_completions)
        self.tokenizer, self.dataset_name, self.max_length = tokenizer, dataset_name, max_length
        self.joint, self.keeps_start = tokenization == "joint", truncation_mode == "keep_start"
        self.score_tie_gap, self.max_completions = score_tie_gap, max_completions
        self.leading_ids = leading_special_ids(tokenizer)
        self.cut = Cut.of(
            tokenization,
            max_length,
            max_prompt_length,
            prompt_truncation_mode,
            truncation_mode,
            tuple(self.leading_ids),
        )
        self.alone, self.repeats = alone, repeats
        self.is_ranking = alone or not {"completions", "completion_ids"}.isdisjoint(columns)
        self.is_tokenized = {"prompt_ids", "completion_ids"} <= set(columns) or set(TOKENIZED_COLUMNS) <= set(columns)

    def __call__(self, row: Mapping[str, Any], index: int) -> PreparedRow:
        """
        Prepares a row.

        Raises:
            ValueError: If training would stop at this row.
        """
        prepared: PreparedPair | PreparedRanking
        ranks, dropped = [0, 1], {}
        if self.is_ranking:
            prepared = prepare_ranking(
                dict(row),
                index,
                dataset_name=self.dataset_name,
                tokenizer=self.tokenizer,
                cut=self.cut,
                score_tie_gap=self.score_tie_gap,
                max_completions=self.max_completions,
                alone=self.alone,
                repeats=self.repeats,
            )
            prompt, ranks, dropped = prepared.row.get("prompt"), prepared.ranks, prepared.dropped
        else:
            prepared = prepare_pair(
                row,
                index,
                dataset_name=self.dataset_name,
                processing_class=self.tokenizer,
                cut=self.cut,
                repeats=self.repeats,
            )
            prompt = prepared.prompt
        if prepared.problem and not prepared.full_prompt:
            return PreparedRow(index, row, prepared.problem)
        completion_ids = prepared.completion_ids
        return PreparedRow(
            index,
            row,
            problem=prepared.problem,
            full_prompt=prepared.full_prompt,
            prompt=None if self.is_tokenized else prompt,
            completions=[] if self.is_tokenized else prepared.completions,
            ranks=ranks,
            prompt_ids=prepared.prompt_ids,
            completion_ids=completion_ids,
            cut_ids=prepared.cut_ids,
            left_out=len(dropped),
            why_left_out=next(iter(dropped.values()), ""),
            prompt_cut=prepared.prompt_cut,
            completions_cut=prepared.completions_cut,
            best_end_cut=self.cut.cuts_end(prepared.prompt_ids, completion_ids[0], prepared.cut_ids[1]),
            prompt_repeated=prepared.prompt_repeated,
        )

    def prompt_of(self, row: Mapping[str, Any]) -> Any:
        """Returns the prompt of a raw row, split off its completions if needed. Invalid rows raise a `ValueError`."""
        ranking, tokenized, _ = checked_ranking(row, 0, self.dataset_name, repeats=self.repeats)
        if tokenized:
            return ranking["prompt_ids"]
        if "prompt" in ranking:
            return ranking["prompt"]
        return split_shared_prompt(ranking["completions"], by_turn=self.is_ranking or not self.joint)[0]
