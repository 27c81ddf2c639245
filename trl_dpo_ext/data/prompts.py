"""Splits an implicit prompt off the two answers that start with it."""

import os.path
from typing import Any

from trl import extract_prompt


__all__ = ["split_prompt"]

_HH_TURN = "\n\nAssistant:"


def split_prompt(row: dict[str, Any]) -> dict[str, Any]:
    r"""
    Splits a row with only `chosen` and `rejected` into `prompt`, `chosen` and `rejected`.

    Text in the format of `Anthropic/hh-rlhf` is split after the last `"\n\nAssistant:"` that both texts share, so that
    answers keep their common first words, as in the authors' code. Anything else is split as TRL does, at the longest
    common start.

    Args:
        row (`dict`):
            Row with `chosen` and `rejected`, both text or both messages.

    Returns:
        `dict`: `prompt`, `chosen` and `rejected`.

    Example:
    ```python
    >>> from trl_dpo_ext.data.prompts import split_prompt

    >>> start = "\n\nHuman: Hi\n\nAssistant:"
    >>> split_prompt({"chosen": start + " So, yes", "rejected": start + " So, no"})
    {'prompt': '\n\nHuman: Hi\n\nAssistant:', 'chosen': ' So, yes', 'rejected': ' So, no'}

    ```
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str):
        shared = os.path.commonprefix([chosen, rejected])
        if not shared:  # TRL takes all but a last space for the prompt here
            return {"prompt": "", "chosen": chosen, "rejected": rejected}
        turn = shared.rfind(_HH_TURN)
        if turn >= 0:
            end = turn + len(_HH_TURN)
            return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}
    return extract_prompt(row)
