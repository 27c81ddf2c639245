"""Scored columns of a row, and the columns of its rewards."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from trl_dpo_ext.data.checks import PROMPT_NAMES
from trl_dpo_ext.data.columns import IMAGE_COLUMNS, is_image
from trl_dpo_ext.data.prompts import without_repeated_prompt
from trl_dpo_ext.data.rankings.checks import check_ranking_columns


__all__ = ["as_columns", "completions_of", "reward_columns"]

# Columns that the tokens of a row depend on besides its completions, and columns of a missing prompt
_CONTEXT = ("prompt", "tools", "chat_template_kwargs", *PROMPT_NAMES)


def reward_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """
    Returns the columns that [`ImplicitRewardModel.score_dataset`] adds to a row with `columns`.

    Example:
    ```python
    >>> from trl_dpo_ext.reward_model.reward_columns import reward_columns

    >>> reward_columns(["prompt", "chosen", "rejected"])
    ('score_chosen', 'score_rejected')

    ```
    """
    if "completions" in columns:
        return ("scores",)
    return ("score",) if _is_single(columns) else ("score_chosen", "score_rejected")


def completions_of(row: Mapping[str, Any], name: str, *, repeats: bool = False) -> dict[str, Any]:
    """
    Returns the columns of a row that [`ImplicitRewardModel.score_rows`] needs.

    Args:
        row (`Mapping`):
            Row with `completions`, `chosen` and `rejected`, or `completion`.
        name (`str`):
            Name of the rows in messages.
        repeats (`bool`, *optional*, defaults to `False`):
            Whether completions start with the prompt of their row, see
            [`~trl_dpo_ext.data.prompts.answers_repeat_prompts`].

    Raises:
        ValueError: If a column is missing, or the row has images.
    """
    for images in IMAGE_COLUMNS:
        if is_image(row.get(images)):
            raise ValueError(f"the row has `{images}`, but rewards are computed for text and chat only.")
    if repeats:
        row = without_repeated_prompt(row)
    context = {column: row[column] for column in _CONTEXT if column in row}
    if _is_single(row):
        return {"completions": [row["completion"]], **context}
    check_ranking_columns(list(row), name)
    if "completions" in row:
        return {"completions": row["completions"], **context}
    if not {"chosen", "rejected"} <= row.keys():
        raise ValueError("the row has token ids but no text (`chosen`, `rejected`) to compute rewards from.")
    return {"chosen": row["chosen"], "rejected": row["rejected"], **context}


def _is_single(columns: Collection[str]) -> bool:
    return "completion" in columns and not {"completions", "chosen", "rejected"}.intersection(columns)


def as_columns(rewards: Sequence[float], names: Sequence[str]) -> dict[str, Any]:
    """
    Returns the rewards of a row's completions as the columns `names` of [`reward_columns`].

    Example:
    ```python
    >>> from trl_dpo_ext.reward_model.reward_columns import as_columns

    >>> as_columns([0.5, -0.5], ["score_chosen", "score_rejected"])
    {'score_chosen': 0.5, 'score_rejected': -0.5}

    ```
    """
    if list(names) == ["scores"]:
        return {"scores": list(rewards)}
    return dict(zip(names, rewards, strict=True))
