"""Checks of raw rows and of their columns. Errors name the row, the column and a fix."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from trl_dpo_ext.batches import RANKING_REF_LOGPS_COLUMN, REF_LOGPS_COLUMNS
from trl_dpo_ext.data.kinds import other_kind
from trl_dpo_ext.data.messages import check_text, is_empty, text_of
from trl_dpo_ext.data.prompts import prompt_once
from trl_dpo_ext.data.token_ids import check_list
from trl_dpo_ext.spelling import likely_column, misspelt_column


__all__ = [
    "COMPLETIONS_TRUNCATED",
    "COUNTED",
    "EMPTY_ANSWER",
    "LEFT_OUT",
    "PREFERENCE_COLUMNS",
    "PROBLEM",
    "PROMPT_NAMES",
    "PROMPT_REPEATED",
    "PROMPT_TRUNCATED",
    "TOKENIZED_COLUMNS",
    "WHY_LEFT_OUT",
    "check_columns",
    "check_number",
    "check_one_kind",
    "check_present",
    "check_ref_logps",
    "check_split_prompt",
    "preference_problem",
    "settle_prompt",
]

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected")  # `prompt` may be left out: it is then the common start
TOKENIZED_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")

# Columns of a prepared row that are only counted. A user's cannot have these names.
PROBLEM, LEFT_OUT, WHY_LEFT_OUT = "__problem", "__left_out", "__why_left_out"
PROMPT_TRUNCATED, COMPLETIONS_TRUNCATED = "__prompt_truncated", "__completions_truncated"
PROMPT_REPEATED = "__prompt_repeated"
COUNTED = (PROBLEM, LEFT_OUT, WHY_LEFT_OUT, PROMPT_TRUNCATED, COMPLETIONS_TRUNCATED, PROMPT_REPEATED)

# Columns that hold the prompt in datasets without `prompt`
PROMPT_NAMES = ("question", "instruction", "query", "problem", "input")

EMPTY_ANSWER = "an answer is empty"


def check_columns(columns: Sequence[str], dataset_name: str) -> None:
    """
    Checks that a preference dataset has its columns.

    Args:
        columns (`Sequence[str]`):
            Column names found.
        dataset_name (`str`):
            Name used in messages.

    Raises:
        ValueError: If `chosen` or `rejected` is missing, only one of the two reference columns is present, or the
            dataset is both a preference and a ranking dataset.
    """
    check_one_kind(columns, dataset_name)
    tokens = [name for name in TOKENIZED_COLUMNS if name in columns]
    needs_ids = "chosen" not in columns or "prompt_ids" in tokens and "prompt" not in columns
    if tokens and len(tokens) < len(TOKENIZED_COLUMNS) and needs_ids:
        missing = next(name for name in TOKENIZED_COLUMNS if name not in columns)
        raise ValueError(
            f"The {dataset_name} dataset has token ids ({', '.join(tokens)}) but no column `{missing}`. Bring "
            f"{', '.join(f'`{name}`' for name in TOKENIZED_COLUMNS)}, or the text."
        )
    if not set(TOKENIZED_COLUMNS) <= set(columns):
        for name in ("chosen", "rejected"):
            if name not in columns:
                kind = other_kind(columns)
                similar = None if kind else likely_column(name, columns)
                hint = f" Is it `{similar}`? Rename it with `dataset.rename_column`." if similar else ""
                hint += f" {kind}" if kind else ""
                raise ValueError(
                    f"The {dataset_name} dataset has no column `{name}`. A preference dataset needs `chosen`, "
                    f"`rejected` and, unless both start with it, `prompt`; found {', '.join(columns)}.{hint}"
                )
        if "prompt" not in columns:
            similar = misspelt_column("prompt", columns)
            if similar:
                raise ValueError(
                    f"The {dataset_name} dataset has no column `prompt`, but one named `{similar}`. Rename it with "
                    "`dataset.rename_column`, or remove it if the prompt is the common start of both answers."
                )
    present = [name for name in REF_LOGPS_COLUMNS if name in columns]
    if len(present) == 1:
        missing = next(name for name in REF_LOGPS_COLUMNS if name not in present)
        raise ValueError(
            f"The {dataset_name} dataset has the column `{present[0]}` but not `{missing}`. Bring both reference "
            "log-probabilities, or neither."
        )


def check_one_kind(columns: Sequence[str], dataset_name: str) -> None:
    """
    Checks that columns are not both those of pairs and of rankings, and have no name that preparation uses itself.

    Raises:
        ValueError: If they are, or have.
    """
    if taken := [name for name in COUNTED if name in columns]:
        raise ValueError(
            f"The {dataset_name} dataset has a column `{taken[0]}`, a name that preparation uses itself. Rename "
            "it with `dataset.rename_column`."
        )
    ranking = [name for name in ("completions", "completion_ids") if name in columns]
    pair = [name for name in ("chosen", "rejected", *TOKENIZED_COLUMNS[1:]) if name in columns]
    if ranking and pair:
        raise ValueError(
            f"The {dataset_name} dataset has the column `{ranking[0]}` of a ranking and "
            f"{' and '.join(f'`{name}`' for name in pair)} of a preference pair. To train on pairs, write the file "
            f"again with `dataset.remove_columns({ranking!r})`; to train on rankings, with "
            f"`dataset.remove_columns({pair!r})`."
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
    check_present(row, ("chosen", "rejected"), where)
    for name in PREFERENCE_COLUMNS:
        if name in row:
            check_text(row[name], name, where, " For several ranked answers use a ranking, not a preference pair.")
    if is_empty(row["chosen"]) or is_empty(row["rejected"]):
        return EMPTY_ANSWER
    if row["chosen"] == row["rejected"]:
        return "both answers are the same"
    return None


def settle_prompt(
    prompt: Any, completions: Mapping[str, Any], where: str, repeats: bool
) -> tuple[Any, list[Any], bool]:
    """
    The prompt of a row, and its completions without it.

    Args:
        prompt (`str` or `list`, *optional*):
            Prompt; `None` if the row has none.
        completions (`Mapping[str, Any]`):
            Completions, by their columns.
        where (`str`):
            The row's name, for messages.
        repeats (`bool`):
            Whether completions of text repeat the prompt, see
            [`~trl_dpo_ext.data.prompts.answers_repeat_prompts`].

    Returns:
        `tuple[Any, list, bool]`: Prompt, completions, and whether they repeated it.

    Raises:
        ValueError: If some are text and some are messages, and the text is not a user's message of all others.
    """
    values = list(completions.values())
    are_text = [isinstance(value, str) for value in values]
    if not values or prompt is None and len(set(are_text)) < 2:
        return prompt, values, False
    if isinstance(prompt, str) and all(are_text):
        if repeats and prompt and all(value.startswith(prompt) for value in values):
            return prompt, [value[len(prompt) :] for value in values], True
        return prompt, values, False
    if prompt is not None and not any(are_text):
        filled = [place for place, value in enumerate(values) if not is_empty(value)]
        if not filled:  # of one type with the prompts of other rows
            return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, values, False
        if once := prompt_once(prompt, [values[place] for place in filled]):
            for place, value in zip(filled, once[1], strict=True):
                values[place] = value
            return once[0], values, True
        if not isinstance(prompt, str):
            if not prompt:
                raise ValueError(
                    f"`prompt` in {where} is empty, so nothing predicts the first token of an answer. Give every row "
                    "a prompt."
                )
            return prompt, values, False
    named = {"prompt": prompt, **completions} if prompt is not None else completions
    text = next(name for name, value in named.items() if isinstance(value, str))
    messages = next(name for name, value in named.items() if not isinstance(value, str))
    fix = "Use one of the two."
    if text == "prompt":
        fix += (
            " (Text is taken with conversations that all start with it as a user's message.) Make it a list of "
            "messages with `dataset.map`, or remove it if the messages hold the prompt."
        )
    raise ValueError(f"In {where} `{text}` is text and `{messages}` is messages. {fix}")


def check_split_prompt(row: Mapping[str, Any], prompt: Any, where: str, dataset_name: str) -> None:
    """
    Checks the prompt that was split off the answers of a row without one.

    Args:
        row (`Mapping`):
            Row, with its other columns.
        prompt (`str` or `list`):
            Common start of its answers.
        where (`str`):
            The row's name, for messages.
        dataset_name (`str`):
            The dataset's name, for messages.

    Raises:
        ValueError: If it is empty, or another column seems to hold the prompt.
    """
    text = text_of(prompt)
    for name, value in row.items():
        if name.lower() in PROMPT_NAMES and isinstance(value, str) and value.strip() not in text:
            raise ValueError(
                f"The {dataset_name} dataset has no column `prompt`, and the common start of the answers of {where} "
                f"does not hold the text of `{name}`. Rename that column to `prompt` with `dataset.rename_column`, or "
                "remove it."
            )
    if not prompt:
        others = [name for name in row if name not in PREFERENCE_COLUMNS and name != "completions"]
        unused = f" (columns not used: {', '.join(f'`{name}`' for name in others)})" if others else ""
        raise ValueError(
            f"The {dataset_name} dataset has no column `prompt`{unused}, and the answers of {where} share no "
            "start that could be one. Rename the column that holds it with `dataset.rename_column`."
        )


def check_present(row: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raises a `ValueError` if a row lacks a column. Rows of a stream can."""
    for name in names:
        if name not in row:
            raise ValueError(f"`{name}` in {where} is missing; it has {', '.join(map(str, row))}. Fill it in.")


def check_ref_logps(row: Mapping[str, Any], where: str, size: int = 2, of: str = "a pair") -> None:
    """
    Checks the reference log-probabilities that a row contains. `ref_logps` has `size` of them, as many as `of` has
    completions.

    Raises:
        ValueError: If one is missing or not a finite number.
    """
    pair = REF_LOGPS_COLUMNS if set(REF_LOGPS_COLUMNS) <= row.keys() else ()
    values = {name: row[name] for name in pair}
    if RANKING_REF_LOGPS_COLUMN in row:
        name, given = RANKING_REF_LOGPS_COLUMN, row[RANKING_REF_LOGPS_COLUMN]
        check_list(given, name, where, "a list of numbers, one for each completion")
        if len(given) != size:
            raise ValueError(
                f"`{name}` in {where} has {len(given)} entries but {of} has {size}. Give one for each completion."
            )
        values |= {f"{name}[{place}]": value for place, value in enumerate(given)}
    advice = "Reference log-probabilities must be finite; compute them again, or remove the column."
    for name, value in values.items():
        check_number(value, name, where, advice)


def check_number(value: Any, name: str, where: str, advice: str) -> None:
    """Raises a `ValueError` if a value is not a finite number."""
    if not isinstance(value, Real) or isinstance(value, bool) or not _is_finite(value):
        found = repr(value)
        raise ValueError(f"`{name}` in {where} is {found if len(found) <= 60 else f'{found[:57]}...'}. {advice}")


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
