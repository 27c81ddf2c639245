"""Prompts and human answers of the paper's tasks: dialogue (HH), TL;DR, and news (CNN/DailyMail)."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from trl_dpo_ext.data.conversion.public_datasets import NEWS_PROMPT, REDDIT_PROMPT
from trl_dpo_ext.data.messages import check_text
from trl_dpo_ext.reward_model.files.row_sources import Record, RowSource


__all__ = ["PAPER_TASKS", "PaperTask", "TaskPrompts", "task_prompts"]

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@dataclass(frozen=True)
class PaperTask:
    """
    A task of the paper and the public dataset of its prompts.

    Args:
        dataset (`str`):
            Name on the hub.
        schemas (`Mapping`):
            For each accepted set of columns, a function that converts a row to the question (empty if there is none),
            the prompt and the human answer.
        dataset_config (`str`, *optional*):
            Configuration of the dataset.
        is_dialogue (`bool`, *optional*, defaults to `False`):
            Whether prompts are dialogues, of which only those with one human turn are kept.
    """

    dataset: str
    schemas: Mapping[tuple[str, ...], Callable[[Mapping[str, str]], tuple[str, str, str]]]
    dataset_config: str | None = None
    is_dialogue: bool = False


@dataclass
class TaskPrompts:
    """
    Prompts of a task.

    Args:
        rows (`list[dict]`):
            `prompt_id` (index of the row), `prompt`, `completion` (the human answer), and `source_id` if the dataset
            has a column `id`.
        num_prompts (`int`):
            Number of prompts from which the rows were drawn.
        num_rows (`int`):
            Number of rows of the dataset.
        left_out (`Counter`):
            Number of rows that were left out, by reason.
    """

    rows: list[dict[str, Any]]
    num_prompts: int
    num_rows: int
    left_out: Counter[str]


def task_prompts(
    task: PaperTask, source: RowSource, *, num: int | None = None, seed: int = 0, max_prompt_chars: int | None = None
) -> TaskPrompts:
    """
    Prompts of a task in an order drawn by the seed, with the human answers that are the baseline of its win rates.

    The order depends on the seed and the texts of the prompts only. So neither the order of the dataset nor `num`
    changes which prompts come first. Of rows with the same prompt, the first is kept.

    Args:
        task ([`PaperTask`]):
            Task.
        source ([`~trl_dpo_ext.reward_model.files.row_sources.RowSource`]):
            Rows of the task's dataset.
        num (`int`, *optional*):
            Number of prompts. Default: all.
        seed (`int`, *optional*, defaults to 0):
            Seed of the order.
        max_prompt_chars (`int`, *optional*):
            Maximum number of characters of a prompt.

    Returns:
        [`TaskPrompts`]

    Raises:
        ValueError: If a row cannot be read or has another schema, or fewer than `num` prompts are left.
    """
    kept: dict[str, dict[str, Any]] = {}
    left_out: Counter[str] = Counter()
    for part in range(source.num_parts):
        for record in source.read(part):
            question, prompt, completion = _converted(record, source, task)
            if task.is_dialogue and not _is_single_turn(prompt + completion):
                left_out["without exactly one human turn"] += 1
            elif not question.strip() or not completion.strip():
                left_out["with an empty question or answer"] += 1
            elif max_prompt_chars is not None and len(prompt) > max_prompt_chars:
                left_out[f"with a prompt of more than {max_prompt_chars} characters"] += 1
            elif prompt in kept:
                left_out["with the prompt of an earlier row"] += 1
            else:
                source_id = {"source_id": record.row["id"]} if "id" in record.row else {}
                kept[prompt] = {"prompt": prompt, "completion": completion} | source_id
    num = len(kept) if num is None else num
    if not 0 < num <= len(kept):
        left = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
        wanted = f", fewer than {num}" if num else ""
        raise ValueError(
            f"{source.name} has {len(kept)} prompts{wanted}. Left out of its {source.num_rows} rows: {left}."
        )
    order = sorted(kept, key=lambda prompt: xxhash.xxh3_128_digest(f"{seed}\n{prompt}".encode()))
    rows = [{"prompt_id": index} | kept[prompt] for index, prompt in enumerate(order[:num])]
    return TaskPrompts(rows, len(kept), source.num_rows, left_out)


def _converted(record: Record, source: RowSource, task: PaperTask) -> tuple[str, str, str]:
    where, row = f"{record.where} of {source.name}", record.row
    if record.problem is not None:
        raise ValueError(f"The prompt in {where} cannot be read: {record.problem}.")
    columns = next((columns for columns in task.schemas if row.keys() >= set(columns)), None)
    if columns is None:
        expected = " or ".join(", ".join(columns) for columns in task.schemas)
        found = ", ".join(row) or "none"
        raise ValueError(f"The columns of {where} are {found}. Expected {expected}, as in {task.dataset}.")
    for name in columns:
        if not isinstance(row[name], str):
            kind = type(row[name]).__name__
            raise ValueError(f"`{name}` in {where} is of type {kind}. Expected text, as in {task.dataset}.")
        check_text(row[name], name, where)
        if task.is_dialogue and _ASSISTANT not in row[name]:
            raise ValueError(f"`{name}` in {where} has no {_ASSISTANT!r}. Expected a dialogue, as in {task.dataset}.")
    return task.schemas[columns](row)


def _is_single_turn(dialogue: str) -> bool:
    return dialogue.startswith(_HUMAN) and dialogue.count(_HUMAN) == dialogue.count(_ASSISTANT) == 1


def _from_dialogue(row: Mapping[str, str]) -> tuple[str, str, str]:
    """The authors' parsing: the prompt of `chosen` ends with its last `"\\n\\nAssistant:"`."""
    start, turn, answer = row["chosen"].rpartition(_ASSISTANT)
    return start.removeprefix(_HUMAN), start + turn, answer


def _from_post(row: Mapping[str, str]) -> tuple[str, str, str]:
    return row["post"], REDDIT_PROMPT.format_map(row), _summary(row["summary"])


def _from_prompt(answer: str) -> Callable[[Mapping[str, str]], tuple[str, str, str]]:
    return lambda row: (row["prompt"], row["prompt"], _summary(row[answer]))


def _from_article(row: Mapping[str, str]) -> tuple[str, str, str]:
    return row["article"], NEWS_PROMPT.format_map(row), _summary(row["highlights"])


def _summary(text: str) -> str:
    return f" {text.strip()}"


PAPER_TASKS = {
    "hh": PaperTask("Anthropic/hh-rlhf", {("chosen",): _from_dialogue}, is_dialogue=True),
    # The schemas of trl-lib/tldr, CarperAI/openai_summarize_tldr, and their source, Stiennon et al.'s tldr_3_filtered
    "tldr": PaperTask(
        "trl-lib/tldr",
        {
            ("prompt", "completion"): _from_prompt("completion"),
            ("prompt", "label"): _from_prompt("label"),
            ("subreddit", "title", "post", "summary"): _from_post,
        },
    ),
    "cnn_dailymail": PaperTask("abisee/cnn_dailymail", {("article", "highlights"): _from_article}, "3.0.0"),
}
