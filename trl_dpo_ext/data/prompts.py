"""The prompt of a row: split off answers that start with it, and taken once if answers repeat it."""

import os.path
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from datasets import Dataset
from transformers.utils import logging
from trl import extract_prompt

from trl_dpo_ext.data.messages import text_of


__all__ = [
    "ANSWERS",
    "answers_repeat_prompts",
    "prompt_once",
    "split_messages",
    "split_prompt",
    "warn_of_repeated_prompts",
    "without_repeated_prompt",
]

logger = logging.get_logger(__name__)

_HH_TURN = "\n\nAssistant:"

ANSWERS = ("completions", "completion", "chosen", "rejected")

_STREAMED = 100  # rows by which a stream is judged


def split_prompt(row: Mapping[str, Any], *, by_turn: bool = True) -> dict[str, Any]:
    r"""
    Splits a row with only `chosen` and `rejected` into `prompt`, `chosen` and `rejected`.

    Text in the format of `Anthropic/hh-rlhf` is split after the last `"\n\nAssistant:"` that both texts share, so that
    answers keep their common first words, as in the authors' code. Anything else is split as TRL does, at the longest
    common start.

    Args:
        row (`Mapping`):
            Row with `chosen` and `rejected`, both text or both messages.
        by_turn (`bool`, *optional*, defaults to `True`):
            Whether dialogue is split after a turn, or as TRL splits any text.

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
    if not isinstance(chosen, str):
        prompt, (chosen, rejected) = split_messages([chosen, rejected])
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    shared = os.path.commonprefix([chosen, rejected])
    if not shared:  # TRL takes all but a last space for the prompt here
        return {"prompt": "", "chosen": chosen, "rejected": rejected}
    turn = shared.rfind(_HH_TURN)
    if by_turn and turn >= 0:
        end = turn + len(_HH_TURN)
        return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}
    return extract_prompt({"chosen": chosen, "rejected": rejected})


def split_messages(completions: Sequence[list[Any]]) -> tuple[list[Any], list[list[Any]]]:
    """
    Splits off the messages that all conversations start with. Each conversation keeps at least its last message, as in
    TRL. Keys that are `None`, which Arrow adds, are ignored when messages are compared.
    """
    turns = zip(*([_keys(message) for message in completion] for completion in completions), strict=False)
    end = 0
    for turn in turns:
        if any(other != turn[0] for other in turn):
            break
        end += 1
    end = min([end, *(max(len(completion) - 1, 0) for completion in completions)])
    return list(completions[0][:end]), [completion[end:] for completion in completions]


def prompt_once(prompt: Any, completions: Sequence[Any]) -> tuple[Any, list[Any]] | None:
    """
    Prompt and completions of a row in which completions of messages repeat the prompt.

    Completions that are whole conversations are split at their common start if it contains the prompt: as messages, or
    as the text of a user's message (the schema of `HuggingFaceH4/ultrafeedback_binarized`). If completions begin with
    the last messages of the prompt, these are removed from them.

    Args:
        prompt (`str` or `list`):
            Prompt of the row.
        completions (`Sequence[list]`):
            Its completions, messages.

    Returns:
        `tuple` or `None`: Prompt and completions, or `None` if they do not repeat it.

    Example:
    ```python
    >>> from trl_dpo_ext.data.prompts import prompt_once

    >>> question = {"role": "user", "content": "So?"}
    >>> yes, no = ({"role": "assistant", "content": text} for text in ("Yes", "No"))
    >>> prompt_once("So?", [[question, yes], [question, no]]) == ([question], [[yes], [no]])
    True

    ```
    """
    if not completions or not all(completions):
        return None
    shared, rest = split_messages(completions)
    if isinstance(prompt, str):
        asked = [text_of([message]).strip() for message in shared if message["role"] == "user"]
        return (shared, rest) if prompt.strip() and prompt.strip() in asked else None
    given, start = [_keys(message) for message in prompt], [_keys(message) for message in shared]
    if not given or not start:
        return None
    if any(start[place : place + len(given)] == given for place in range(len(start))):
        return shared, rest
    for size in range(min(len(given), len(start)), 0, -1):
        if given[-size:] == start[:size] and any(message["role"] != "assistant" for message in start[:size]):
            return prompt, [completion[size:] for completion in completions]
    return None


def answers_repeat_prompts(dataset: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> bool:
    """
    Whether in every row all answers are text that begins with the row's prompt.

    A single row may begin so by chance. So all rows are looked at; of a stream, the first hundred.
    """
    names = [name for name in ANSWERS if name in columns]
    if "prompt" not in columns or not names:
        return False
    if isinstance(dataset, Dataset):
        rows: Iterable[Any] = dataset.select_columns(["prompt", *names])
    else:
        rows = islice(dataset, _STREAMED)
    return all(_repeats(row, names) for row in rows)


def without_repeated_prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the prompt that its answers of text begin with; any other row as it is."""
    names = [name for name in ANSWERS if name in row]
    if not _repeats(row, names):
        return dict(row)
    end = len(row["prompt"])
    apart = {name: [v[end:] for v in row[name]] if isinstance(row[name], list) else row[name][end:] for name in names}
    return dict(row) | apart


def warn_of_repeated_prompts(dataset_name: str) -> None:
    """Warns once that answers of a stream begin with their prompt. In a dataset these rows are counted."""
    logger.warning_once(
        f"Answers of the {dataset_name} stream begin with their prompt, which is taken once. In a stream such rows "
        "are not counted."
    )


def _repeats(row: Mapping[str, Any], names: Sequence[str]) -> bool:
    prompt = row.get("prompt")
    answers: list[Any] = []
    for value in (row[name] for name in names if name in row):
        answers += value if isinstance(value, list) else [value]
    if not isinstance(prompt, str) or not prompt or not answers:
        return False
    return all(isinstance(answer, str) and answer.startswith(prompt) for answer in answers)


def _keys(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if value is not None}
