"""One row through the functions that training prepares it with: refused, left out, or token ids and their cut."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import extract_prompt

from trl_dpo_ext.data.checks import REF_LOGPS_COLUMNS, TOKENIZED_COLUMNS
from trl_dpo_ext.data.preparation import ROW_NUMBER, SAME_TOKENS, has_finite_ref_logps, pair_problem
from trl_dpo_ext.data.prompts import split_prompt
from trl_dpo_ext.data.rankings.one_row import (
    DROPPED,
    PROBLEM,
    WHY_DROPPED,
    check_options,
    cut_options,
    prepare_counted,
)
from trl_dpo_ext.data.rankings.rows import as_ranking, split_shared_prompt
from trl_dpo_ext.data.rankings.tokenization import tokenize_ranking
from trl_dpo_ext.data.tokenization import cut_completions, leading_special_ids


__all__ = ["FULL_PROMPT", "PreparedRow", "RowPreparation", "key_of", "text_of"]

# Steps of preparation that leave rows out, in the order in which a trainer takes all rows through them
_NO_PREFERENCE, _SAME_AS_TOKENS, FULL_PROMPT = range(3)


@dataclass
class PreparedRow:
    """
    What preparation makes of a row; lists of completions are best first, without those left out.

    Args:
        index (`int`): Number of the row, from 0.
        raw (`Mapping`): The row as it came.
        problem (`str`): Why training leaves the row out; then nothing below is known, unless its prompt is too long.
        step (`int`): The step of preparation that leaves it out.
        prompt (`str` or `list`, *optional*): Prompt; `None` in a row of token ids.
        completions (`list`): Texts or message lists; empty in a row of token ids.
        ranks (`list[int]`): 0 for the best, equal for ties.
        prompt_ids (`list[int]`): Tokens of the prompt, uncut.
        completion_ids (`list[list[int]]`): Tokens of the completions, uncut.
        left_out (`int`): Completions left out.
        why_left_out (`str`): Why the first of them is.
        prompt_cut (`bool`): Whether training cuts the prompt.
        completions_cut (`bool`): Whether training cuts a completion (with `tokenization="joint"`: or the prompt).
        best_end_cut (`bool`): Whether the best completion loses its last token.
    """

    index: int
    raw: Mapping[str, Any]
    problem: str = ""
    step: int = _NO_PREFERENCE
    prompt: Any = None
    completions: list[Any] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    left_out: int = 0
    why_left_out: str = ""
    prompt_cut: bool = False
    completions_cut: bool = False
    best_end_cut: bool = False

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
        """Every text or message content, each with its place: `prompt`, `answer 0` (the best) and so on."""
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
        """All texts as one, for a first look."""
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
    """A number that is equal for equal texts, message lists or token ids."""
    return hash(value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str))


def text_of(value: str | Sequence[Mapping[str, Any]]) -> str:
    """Plain text, or the text of all messages."""
    if isinstance(value, str):
        return value
    return "\n".join(_content_of(message) for message in value)


def _content_of(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


class RowPreparation:
    """
    Prepares rows as training does, by options of the same names, and keeps what they were before the cut.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer.
        columns (`Sequence[str]`): Columns of the data set.
        dataset_name (`str`): Name used in messages.
        tokenization (`str`): `"separate"` or `"joint"`.
        max_length (`int`, *optional*): Most tokens of a prompt with a completion.
        max_prompt_length (`int`, *optional*): Tokens an over-long row's prompt is cut to.
        prompt_truncation_mode (`str`, *optional*): Which end of a cut prompt is kept.
        truncation_mode (`str`): With `"joint"`: which end TRL's collator keeps.
        score_tie_gap (`float`): Difference up to which scores tie.
        max_completions (`int`, *optional*): Most completions that a row may have.

    Raises:
        ValueError: If an option has a value that does not exist.
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
    ) -> None:
        check_options(tokenization, prompt_truncation_mode, truncation_mode, score_tie_gap, max_completions)
        self.tokenizer, self.dataset_name, self.max_length = tokenizer, dataset_name, max_length
        self.joint, self.keeps_start = tokenization == "joint", truncation_mode == "keep_start"
        self.cut = cut_options(max_length, max_prompt_length, prompt_truncation_mode or "keep_end")
        self.score_tie_gap, self.max_completions = score_tie_gap, max_completions
        self.leading_ids = leading_special_ids(tokenizer)
        self.is_ranking = not {"completions", "completion_ids"}.isdisjoint(columns)
        self.is_tokenized = {"prompt_ids", "completion_ids"} <= set(columns) or set(TOKENIZED_COLUMNS) <= set(columns)
        self.is_text: bool | None = None  # whether pairs are plain text: as the first one, which training goes by
        self.unused = [name for name in columns if name not in ("prompt", "chosen", "rejected")]

    def __call__(self, row: Mapping[str, Any], index: int) -> PreparedRow:
        """
        Prepares a row.

        Raises:
            ValueError: If training stops at this row.
        """
        as_pair = not self.is_ranking and not self.is_tokenized
        prepared = self._pair(row, index) if as_pair else self._ranking(row, index)
        return prepared if prepared.problem else self._with_cut(prepared)

    def prompt_of(self, row: Mapping[str, Any]) -> Any:
        """The prompt of a raw row, split off its completions where it has none."""
        if self.is_tokenized:
            return row["prompt_ids"]
        if "prompt" in row:
            return row["prompt"]
        if self.is_ranking:
            return split_shared_prompt(row["completions"])[0]
        return (extract_prompt if self.joint else split_prompt)(dict(row))["prompt"]

    def _pair(self, row: Mapping[str, Any], index: int) -> PreparedRow:
        # As `trainers.dataset_preparation.prepare_preferences`, which takes a data set through one step at a time
        needs_prompt = not (self.joint or self.leading_ids)
        problem = pair_problem(dict(row), index, self.dataset_name, needs_prompt, self.unused, self.is_text)["problem"]
        self.is_text = isinstance(row["chosen"], str) if self.is_text is None else self.is_text
        if problem:
            return PreparedRow(index, row, problem)
        pair = row if "prompt" in row else {**row, **(extract_prompt if self.joint else split_prompt)(dict(row))}
        if set(REF_LOGPS_COLUMNS) <= set(row):
            has_finite_ref_logps({**row, ROW_NUMBER: index}, self.dataset_name)
        ranking = as_ranking(pair)
        where = f"row {index} of the {self.dataset_name} dataset"
        prompt_ids, completion_ids = tokenize_ranking(
            ranking, self.tokenizer, self.leading_ids, where, joint=self.joint
        )
        if completion_ids[0] == completion_ids[1]:
            return PreparedRow(index, row, SAME_TOKENS, _SAME_AS_TOKENS)
        return PreparedRow(
            index,
            row,
            prompt=ranking["prompt"],
            completions=ranking["completions"],
            ranks=[0, 1],
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
        )

    def _ranking(self, row: Mapping[str, Any], index: int) -> PreparedRow:
        prepared = prepare_counted(
            dict(row),
            index,
            dataset_name=self.dataset_name,
            tokenizer=self.tokenizer,
            joint=self.joint,
            cut=None,
            max_length=None,
            collator_keeps_start=self.keeps_start,
            score_tie_gap=self.score_tie_gap,
            max_completions=self.max_completions,
            keep_all=False,
            leading_ids=self.leading_ids,
            streaming=False,
        )
        if prepared[PROBLEM]:
            # A pair of token ids has no other problem
            return PreparedRow(index, row, prepared[PROBLEM] if self.is_ranking else SAME_TOKENS)
        return PreparedRow(
            index,
            row,
            prompt=None if self.is_tokenized else prepared["prompt"],
            completions=[] if self.is_tokenized else prepared["completions"],
            ranks=prepared["ranks"],
            prompt_ids=prepared["prompt_ids"],
            completion_ids=prepared["completion_ids"],
            left_out=prepared[DROPPED],
            why_left_out=prepared[WHY_DROPPED],
        )

    def _with_cut(self, row: PreparedRow) -> PreparedRow:
        if self.cut is None:
            return row
        if not self.joint:
            _, kept, row.prompt_cut, row.completions_cut = cut_completions(
                row.prompt_ids, row.completion_ids, leading_ids=self.leading_ids, **self.cut
            )
            row.best_end_cut = len(kept[0]) < len(row.completion_ids[0])
            return row
        num_prompt, max_length = len(row.prompt_ids), self.cut["max_length"]
        if self.keeps_start and num_prompt >= max_length:
            row.problem, row.step = f"its prompt fills `max_length={max_length}`", FULL_PROMPT
        row.completions_cut = num_prompt + max(map(len, row.completion_ids)) > max_length
        row.best_end_cut = self.keeps_start and num_prompt + len(row.completion_ids[0]) > max_length
        return row
