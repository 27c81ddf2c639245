"""A row prepared as in training: an error, a dropped row, or token ids and their truncation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_dpo_ext.data import row_preparation
from trl_dpo_ext.data.messages import text_of
from trl_dpo_ext.data.rankings.checks import check_ranking_options
from trl_dpo_ext.data.row_preparation import prepare_row
from trl_dpo_ext.data.tokenization import Truncation


__all__ = ["PreparedRow", "RowPreparation", "key_of", "text_of"]


@dataclass
class PreparedRow(row_preparation.PreparedRow):
    """
    A row prepared as in training, with what the checks need besides.

    Args:
        index (`int`): Index of the row, from 0.
        raw (`Mapping`): Row of the dataset.
        best_end_truncated (`bool`): Whether the best completion loses its last token.
    """

    index: int = 0
    raw: Mapping[str, Any] = field(default_factory=dict)
    best_end_truncated: bool = False

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
        score_tie_gap (`float`): Difference up to which scores tie.
        max_completions (`int`, *optional*): Maximum number of completions of a row.
        alone (`bool`): Whether only the best completion is learned, as by
            [`~trl_dpo_ext.trainers.preferred_ft_trainer.PreferredFTTrainer`].
        repeats (`bool`): Whether text answers start with the prompt of their row, which is then removed from them.
        options: Same as in [`~trl_dpo_ext.data.tokenization.Truncation.of`].

    Raises:
        ValueError: If an option has an unknown value.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        columns: Sequence[str],
        dataset_name: str,
        *,
        score_tie_gap: float = 0.0,
        max_completions: int | None = None,
        alone: bool = False,
        repeats: bool = False,
        **options: Any,
    ) -> None:
        check_ranking_options(score_tie_gap, max_completions)
        self.tokenizer, self.dataset_name, self.alone = tokenizer, dataset_name, alone
        self.truncation = Truncation.of(tokenizer, **options)
        self.is_ranking = alone or not {"completions", "completion_ids"}.isdisjoint(columns)
        self._prepare = partial(
            prepare_row,
            dataset_name=dataset_name,
            processing_class=tokenizer,
            truncation=self.truncation,
            score_tie_gap=score_tie_gap,
            max_completions=max_completions,
            alone=alone,
            repeats=repeats,
        )

    def __call__(self, row: Mapping[str, Any], index: int) -> PreparedRow:
        """
        Prepares a row.

        Raises:
            ValueError: If training would stop at this row.
        """
        prepared = self._prepare(row, index)
        examined = PreparedRow(**vars(prepared), index=index, raw=row)
        if prepared.completion_ids:
            best, kept = prepared.completion_ids[0], prepared.truncated_ids[1]
            examined.best_end_truncated = self.truncation.truncates_end(prepared.prompt_ids, best, kept)
        return examined
