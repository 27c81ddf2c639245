"""Tokens as the paper's authors make them: prompt and answers apart, the EOS id appended, the prompt cut first."""

from typing import Any

from transformers import PreTrainedTokenizerBase


__all__ = ["cut_pair", "leading_special_ids", "tokenize_pair"]


def leading_special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer puts before a text (BOS for Llama), without the ones it may append after it."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return []


def tokenize_pair(
    row: dict[str, Any],
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    leading_ids: list[int],
    dataset_name: str,
) -> dict[str, list[int]]:
    """
    Tokenises prompt and answers of a plain-text row apart and appends the EOS id to each answer that lacks it.

    Differs from the authors' code: special tokens that the tokenizer puts before a prompt are kept (the authors drop
    a BOS), and an EOS already at the end of an answer is not doubled (the authors refuse such text).

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
    ids = {
        f"{name}_ids": tokenizer(row[name], add_special_tokens=False)["input_ids"]
        for name in ("prompt", "chosen", "rejected")
    }
    ids["prompt_ids"] = leading_ids + ids["prompt_ids"]
    if not ids["prompt_ids"]:
        raise ValueError(
            f"`prompt` in row {index} of the {dataset_name} dataset is empty and the tokenizer adds no BOS token, so "
            "nothing predicts the first token of an answer. Give every row a prompt."
        )
    for name in ("chosen_ids", "rejected_ids"):
        if ids[name][-1:] != [tokenizer.eos_token_id]:
            ids[name] = ids[name] + [tokenizer.eos_token_id]
    return ids


def cut_pair(
    row: dict[str, list[int]], max_length: int, max_prompt_length: int, keep_end: bool, leading_ids: list[int]
) -> dict[str, Any]:
    """
    Cuts an over-long row by the authors' rule.

    With P prompt tokens and R tokens in the longer answer, nothing happens while `P + R <= max_length`. Else the
    prompt is cut to `max_prompt_length`; if that is not enough, every answer is cut to its first `max_length -
    max_prompt_length` tokens, whatever the prompt's real length (so the longer answer loses its EOS).

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
    prompt, chosen, rejected = row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]
    longest = max(len(chosen), len(rejected))
    prompt_cut = answer_cut = False
    if len(prompt) + longest > max_length:
        prompt_cut = len(prompt) > max_prompt_length
        if prompt_cut:
            kept = leading_ids if prompt[: len(leading_ids)] == leading_ids else []
            rest = prompt[len(kept) :]
            room = max_prompt_length - len(kept)
            prompt = kept + (rest[len(rest) - room :] if keep_end else rest[:room])
        if len(prompt) + longest > max_length:
            room = max_length - max_prompt_length
            answer_cut = longest > room
            chosen, rejected = chosen[:room], rejected[:room]
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "prompt_cut": prompt_cut,
        "answer_cut": answer_cut,
    }
