"""Comparisons: pairs of completions of the same prompt, by a policy and by a baseline, from two files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import xxhash

from trl_dpo_ext.evaluation.judging.judgements import required_value
from trl_dpo_ext.reward_model.files.row_sources import Record, RowSource


__all__ = ["Comparison", "Completions", "compare", "hash_prompt", "read_completions", "text_of_prompt"]


@dataclass(frozen=True)
class Comparison:
    """
    Two completions of a prompt.

    Args:
        prompt (`str` or `list[dict]`):
            Prompt, a text or messages.
        a (`str`):
            Completion of the policy.
        b (`str`):
            Completion of the baseline.
        prompt_id (`int` or `str`, *optional*):
            Name of the prompt in the files.
    """

    prompt: Any
    a: str
    b: str
    prompt_id: int | str | None = None

    @cached_property
    def prompt_hash(self) -> str:
        """Hash of the prompt, which estimates are clustered by."""
        return hash_prompt(self.prompt)

    @cached_property
    def item(self) -> str:
        """Hash of prompt and completions. The same comparison has the same item in every file."""
        return _hash([self.prompt, self.a, self.b])


@dataclass(frozen=True)
class _Row:
    """A completion of a file."""

    prompt: Any
    completion: str
    prompt_id: int | str | None
    where: str


@dataclass(frozen=True)
class Completions:
    """
    Completions of a file, by prompt.

    Args:
        name (`str`):
            Name of the file in messages.
        rows (`Sequence[_Row]`):
            Its rows.
    """

    name: str
    rows: Sequence[_Row]

    @property
    def have_ids(self) -> bool:
        """Whether every row has a `prompt_id`."""
        return all(row.prompt_id is not None for row in self.rows)

    def by(self, *, prompt_id: bool) -> dict[Any, list[_Row]]:
        """Returns the rows of each prompt, by its `prompt_id` or by its hash."""
        found: dict[Any, list[_Row]] = {}
        for row in self.rows:
            found.setdefault(str(row.prompt_id) if prompt_id else hash_prompt(row.prompt), []).append(row)
        return found


def hash_prompt(prompt: Any) -> str:
    """Returns the hash of a prompt, a text or messages."""
    return _hash(prompt)


def _hash(value: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(value, sort_keys=True).encode())


def text_of_prompt(prompt: Any) -> str:
    """
    Returns a prompt as a judge reads it.

    The text of a single message, or all turns, each with its role. Dialogue in the format of `Anthropic/hh-rlhf` loses
    the `Assistant:` at its end, and its only `Human:`.

    Example:

    ```python
    >>> from trl_dpo_ext.evaluation.judging.comparisons import text_of_prompt

    >>> text_of_prompt([{"role": "user", "content": "2 + 2?"}])
    '2 + 2?'
    >>> text_of_prompt("\\n\\nHuman: 2 + 2?\\n\\nAssistant:")
    '2 + 2?'

    ```
    """
    if isinstance(prompt, str):
        text = prompt.strip()
        if text.startswith("Human:"):
            text = text.removesuffix("Assistant:").strip()
            text = text if "\n\nHuman:" in text else text.removeprefix("Human:").strip()
        return text
    turns = [(message["role"], _text_of_message(message)) for message in prompt]
    if len(turns) == 1:
        return turns[0][1]
    return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in turns)


def _text_of_message(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content.strip()
    return "\n".join(part["text"] for part in content if part.get("type") == "text").strip()


def read_completions(source: RowSource) -> Completions:
    """
    Reads the completions of a file.

    Args:
        source ([`~trl_dpo_ext.reward_model.files.row_sources.RowSource`]):
            Rows with `prompt` (text or messages), `completion` (a text, or messages whose last one is its text) and
            optionally `prompt_id`.

    Raises:
        ValueError: If a row cannot be read, or a column is missing or has another type.
    """
    rows = [_row(record, source.name) for part in range(source.num_parts) for record in source.read(part)]
    return Completions(source.name, rows)


def _row(record: Record, name: str) -> _Row:
    where = f"{record.where} of {name}"
    if record.problem is not None:
        raise ValueError(f"The completion in {where} cannot be read: {record.problem}.")
    prompt, completion = (_value(record.row, column, where) for column in ("prompt", "completion"))
    if isinstance(completion, list):
        completion = _text_of_message(completion[-1])
    prompt_id = record.row.get("prompt_id")
    if prompt_id is not None and (isinstance(prompt_id, bool) or not isinstance(prompt_id, int | str)):
        raise ValueError(f"`prompt_id` in {where} is {prompt_id!r}. Expected a whole number or a text.")
    return _Row(prompt, completion, prompt_id, where)


def _value(row: dict[str, Any], name: str, where: str) -> Any:
    value = required_value(row, name, where)
    if isinstance(value, str) or (value and _are_messages(value)):
        return value
    raise ValueError(f"`{name}` in {where} is {json.dumps(value, default=str)[:60]}. Expected a text or messages.")


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and (
            isinstance(message.get("content"), str)
            or isinstance(message.get("content"), list)
            and all(isinstance(part, dict) for part in message["content"])
        )
        for message in value
    )


def compare(policy: Completions, baseline: Completions) -> tuple[list[Comparison], int, int]:
    """
    Pairs the completions of two files, by `prompt_id` where all rows of both have it, else by prompt.

    Several samples of a prompt are paired in their order. If one of the files has one sample of it, that one is paired
    with all of the other's.

    Args:
        policy ([`Completions`]):
            Completions `a`.
        baseline ([`Completions`]):
            Completions `b`.

    Returns:
        `tuple[list[Comparison], int, int]`: The comparisons, and the number of prompts that only the policy and only
        the baseline has.

    Raises:
        ValueError: If no prompt is in both, prompts of the same `prompt_id` differ, or the numbers of samples do not
            fit.
    """
    with_ids = policy.have_ids and baseline.have_ids
    of_policy, of_baseline = policy.by(prompt_id=with_ids), baseline.by(prompt_id=with_ids)
    common = [key for key in of_policy if key in of_baseline]
    if not common:
        shown = [f"{one.name} has {json.dumps(one.rows[0].prompt)[:60]}" for one in (policy, baseline)]
        how = "by `prompt_id`" if with_ids else "by `prompt`"
        raise ValueError(f"No prompt is in both files, compared {how}: {', and '.join(shown)}.")
    comparisons = []
    for key in common:
        own, others = of_policy[key], of_baseline[key]
        for one in [*own, *others]:
            if hash_prompt(one.prompt) != hash_prompt(own[0].prompt):
                raise ValueError(
                    f"The prompts of {own[0].where} and {one.where} differ, although both have the `prompt_id` {key}. "
                    "Pass completions of the same prompts, or remove `prompt_id` to compare by prompt."
                )
        if 1 not in (len(own), len(others)) and len(own) != len(others):
            raise ValueError(
                f"{policy.name} has {len(own)} samples of the prompt of {own[0].where}, and {baseline.name} has "
                f"{len(others)}. Pass equal numbers, or one sample of each prompt."
            )
        num = max(len(own), len(others))
        pairs = [(own[i % len(own)], others[i % len(others)]) for i in range(num)]
        comparisons += [Comparison(a.prompt, a.completion, b.completion, a.prompt_id) for a, b in pairs]
    return comparisons, len(of_policy) - len(common), len(of_baseline) - len(common)
