"""Tokens as the paper's authors make them: prompt and answers apart, the EOS id appended, the prompt cut first."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


__all__ = ["cut_completions", "cut_pair", "leading_special_ids", "tokenize_apart", "tokenize_pair"]


def leading_special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer puts before a text (BOS for Llama), without the ones it may append after it."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return []


def tokenize_apart(
    prompt: str, completions: Sequence[str], tokenizer: PreTrainedTokenizerBase, leading_ids: list[int], where: str
) -> tuple[list[int], list[list[int]]]:
    """
    Tokenises a prompt and its completions apart and appends the EOS id to each completion that lacks it.

    Differs from the authors' code: special tokens that the tokenizer puts before a prompt are kept (the authors drop
    a BOS), and an EOS already at the end of a completion is not doubled (the authors refuse such text).

    Args:
        prompt (`str`):
            Prompt.
        completions (`Sequence[str]`):
            Any number of completions.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with an EOS token.
        leading_ids (`list[int]`):
            Result of [`leading_special_ids`].
        where (`str`):
            The row's name in messages.

    Returns:
        `tuple[list[int], list[list[int]]]`: Ids of the prompt, and of each completion.

    Raises:
        ValueError: If the prompt has no token, so that nothing predicts a completion's first token.
    """
    prompt_ids, *completion_ids = tokenizer([prompt, *completions], add_special_tokens=False)["input_ids"]
    prompt_ids = leading_ids + prompt_ids
    if not prompt_ids:
        raise ValueError(
            f"`prompt` in {where} is empty and the tokenizer adds no BOS token, so nothing predicts the first token "
            "of an answer. Give every row a prompt."
        )
    eos = [tokenizer.eos_token_id]
    return prompt_ids, [ids if ids[-1:] == eos else ids + eos for ids in completion_ids]


def tokenize_pair(
    row: dict[str, Any],
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    leading_ids: list[int],
    dataset_name: str,
) -> dict[str, list[int]]:
    """
    Tokenises prompt and answers of a plain-text row apart. See [`tokenize_apart`].

    Args:
        row (`dict`):
            `prompt`, `chosen` and `rejected`, text.
        index (`int`):
            Number of the row, for messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with an EOS token.
        leading_ids (`list[int]`):
            Result of [`leading_special_ids`].
        dataset_name (`str`):
            Name used in messages.

    Returns:
        `dict[str, list[int]]`: `prompt_ids`, `chosen_ids`, `rejected_ids`.

    Raises:
        ValueError: If the prompt has no token, so that nothing predicts an answer's first token.
    """
    where = f"row {index} of the {dataset_name} dataset"
    answers = (row["chosen"], row["rejected"])
    prompt_ids, (chosen_ids, rejected_ids) = tokenize_apart(row["prompt"], answers, tokenizer, leading_ids, where)
    return {"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}


def cut_completions(
    prompt_ids: list[int],
    completion_ids: Sequence[list[int]],
    *,
    max_length: int,
    max_prompt_length: int,
    keep_end: bool,
    leading_ids: list[int],
) -> tuple[list[int], list[list[int]], bool, bool]:
    """
    Cuts an over-long prompt with its completions by the authors' rule.

    With P prompt tokens and R tokens in the longest completion, nothing happens while `P + R <= max_length`. Else the
    prompt is cut to `max_prompt_length`; if that is not enough, every completion is cut to its first `max_length -
    max_prompt_length` tokens, whatever the prompt's real length (so the longest completion loses its EOS).

    Args:
        prompt_ids (`list[int]`):
            Prompt.
        completion_ids (`Sequence[list[int]]`):
            Its completions, one or more.
        max_length (`int`):
            Most tokens a prompt with its completion may have.
        max_prompt_length (`int`):
            Tokens an over-long row's prompt is cut to.
        keep_end (`bool`):
            Whether the prompt's end is kept, or its start.
        leading_ids (`list[int]`):
            Special ids that stay in front of a cut prompt.

    Returns:
        `tuple`: The prompt, its completions, whether the prompt was cut, and whether a completion was.
    """
    completion_ids = list(completion_ids)
    longest = max(map(len, completion_ids))
    prompt_cut = completions_cut = False
    if len(prompt_ids) + longest > max_length:
        prompt_cut = len(prompt_ids) > max_prompt_length
        if prompt_cut:
            kept = leading_ids if prompt_ids[: len(leading_ids)] == leading_ids else []
            rest = prompt_ids[len(kept) :]
            room = max_prompt_length - len(kept)
            prompt_ids = kept + (rest[len(rest) - room :] if keep_end else rest[:room])
        if len(prompt_ids) + longest > max_length:
            room = max_length - max_prompt_length
            completions_cut = longest > room
            completion_ids = [ids[:room] for ids in completion_ids]
    return prompt_ids, completion_ids, prompt_cut, completions_cut


def cut_pair(
    row: dict[str, list[int]], max_length: int, max_prompt_length: int, keep_end: bool, leading_ids: list[int]
) -> dict[str, Any]:
    """
    Cuts an over-long pair by the authors' rule. See [`cut_completions`].

    Args:
        row (`dict`):
            `prompt_ids`, `chosen_ids`, `rejected_ids`.
        max_length (`int`):
            Most tokens a prompt with its answer may have.
        max_prompt_length (`int`):
            Tokens an over-long row's prompt is cut to.
        keep_end (`bool`):
            Whether the prompt's end is kept, or its start.
        leading_ids (`list[int]`):
            Special ids that stay in front of a cut prompt.

    Returns:
        `dict`: The three id lists, and `prompt_cut` and `answer_cut`.
    """
    prompt_ids, (chosen_ids, rejected_ids), prompt_cut, answer_cut = cut_completions(
        row["prompt_ids"],
        (row["chosen_ids"], row["rejected_ids"]),
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        keep_end=keep_end,
        leading_ids=leading_ids,
    )
    return {
        "prompt_ids": prompt_ids,
        "chosen_ids": chosen_ids,
        "rejected_ids": rejected_ids,
        "prompt_cut": prompt_cut,
        "answer_cut": answer_cut,
    }
