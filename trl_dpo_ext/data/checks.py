"""Checks of raw rows: one error that names the row and the fix, and the rows that carry no preference."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any


__all__ = [
    "PREFERENCE_COLUMNS",
    "REF_LOGPS_COLUMNS",
    "TOKENIZED_COLUMNS",
    "check_columns",
    "check_text",
    "preference_problem",
]

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected")  # `prompt` may be left out: it is then the common start
TOKENIZED_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
REF_LOGPS_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")

_EMPTY_ANSWER = "an answer is empty"
_IDENTICAL = "both answers are the same"


def check_columns(columns: Sequence[str], dataset_name: str) -> None:
    """
    Checks that the columns of a preference data set are there.

    Args:
        columns (`Sequence[str]`):
            Column names found.
        dataset_name (`str`):
            Name used in messages.

    Raises:
        ValueError: If `chosen` or `rejected` is missing, or only one of the two reference columns is there.
    """
    tokens = [name for name in TOKENIZED_COLUMNS if name in columns]
    if tokens and len(tokens) < len(TOKENIZED_COLUMNS) and "chosen" not in columns:
        missing = next(name for name in TOKENIZED_COLUMNS if name not in columns)
        raise ValueError(
            f"The {dataset_name} dataset has token ids ({', '.join(tokens)}) but no column `{missing}`. Bring "
            f"{', '.join(f'`{name}`' for name in TOKENIZED_COLUMNS)}, or the text."
        )
    if not set(TOKENIZED_COLUMNS) <= set(columns):
        for name in ("chosen", "rejected"):
            if name not in columns:
                similar = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
                hint = f" Is it `{similar[0]}`? Rename it with `dataset.rename_column`." if similar else ""
                raise ValueError(
                    f"The {dataset_name} dataset has no column `{name}`. A preference data set needs `chosen`, "
                    f"`rejected` and, unless both start with it, `prompt`; found {', '.join(columns)}.{hint}"
                )
        if "prompt" not in columns:
            similar = difflib.get_close_matches("prompt", columns, n=1, cutoff=0.75)
            if similar:
                raise ValueError(
                    f"The {dataset_name} dataset has no column `prompt`, but one named `{similar[0]}`. Rename it with "
                    "`dataset.rename_column`, or remove it if the prompt is the common start of both answers."
                )
    present = [name for name in REF_LOGPS_COLUMNS if name in columns]
    if len(present) == 1:
        missing = next(name for name in REF_LOGPS_COLUMNS if name not in present)
        raise ValueError(
            f"The {dataset_name} dataset has the column `{present[0]}` but not `{missing}`. Bring both reference "
            "log-probabilities, or neither."
        )


def preference_problem(row: Mapping[str, Any], index: int, dataset_name: str) -> str | None:
    """
    Checks one raw preference row.

    Args:
        row (`Mapping`):
            Row with `chosen`, `rejected` and, optionally, `prompt`.
        index (`int`):
            Its number, for the message.
        dataset_name (`str`):
            Name used in messages.

    Returns:
        `str` or `None`: Why the row carries no preference and is left out, or `None` for a good row.

    Raises:
        ValueError: If a value is missing or of the wrong kind.
    """
    where = f"row {index} of the {dataset_name} dataset"
    names = [name for name in PREFERENCE_COLUMNS if name in row]
    for name in names:
        check_text(row[name], name, where, " For several ranked answers use a ranking, not a preference pair.")
    if len({isinstance(row[name], str) for name in names}) > 1:
        kinds = ", ".join(f"`{name}` {'text' if isinstance(row[name], str) else 'messages'}" for name in names)
        raise ValueError(f"In {where} some columns are text and some are messages ({kinds}). Use one of the two.")
    if _is_empty(row["chosen"]) or _is_empty(row["rejected"]):
        return _EMPTY_ANSWER
    if row["chosen"] == row["rejected"]:
        return _IDENTICAL
    return None


def check_text(value: Any, name: str, where: str, hint: str = "") -> None:
    """
    Checks that a value is text, or a list of messages with `role` and `content` (or `tool_calls`).

    Args:
        value (`Any`):
            Prompt or answer.
        name (`str`):
            Its column, for the message.
        where (`str`):
            Its row, for the message.
        hint (`str`, *optional*):
            What else a list may have been meant to be.

    Raises:
        ValueError: If it is something else.
    """
    if value is None:
        raise ValueError(f"`{name}` in {where} is None. Fill it in, or drop such rows with `dataset.filter`.")
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        raise ValueError(
            f"`{name}` in {where} is of type {type(value).__name__}. Expected text, or a list of messages."
        )
    for message in value:
        if not (isinstance(message, Mapping) and "role" in message):
            found = f"keys {sorted(message)}" if isinstance(message, Mapping) else type(message).__name__
            raise ValueError(
                f"`{name}` in {where} is a list with an entry of {found}. Expected text, or a list of messages with "
                f"`role` and `content`.{hint}"
            )
        if message.get("content") is None and not message.get("tool_calls"):
            raise ValueError(
                f"`{name}` in {where} has a message without `content` (keys {sorted(message)}). Give every message "
                "its text, or its `tool_calls`."
            )


def _is_empty(answer: Any) -> bool:
    if isinstance(answer, str):
        return not answer
    return not any(message.get("content") or message.get("tool_calls") for message in answer)
