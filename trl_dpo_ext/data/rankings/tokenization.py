"""Tokens of one prompt with its K completions, as the paper's authors make them or as TRL does for two."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_dpo_ext.data.tokenization import tokenize_apart


__all__ = ["tokenize_jointly", "tokenize_ranking"]

logger = logging.get_logger(__name__)


def tokenize_ranking(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    leading_ids: list[int],
    where: str,
    *,
    joint: bool = False,
) -> tuple[list[int], list[list[int]]]:
    """
    Token ids of a prompt and of its completions.

    Text is tokenised apart by [`~trl_dpo_ext.data.tokenization.tokenize_apart`], chat by [`tokenize_jointly`].

    Args:
        row (`Mapping`):
            `prompt` and `completions`, text or messages, and optionally `tools` and `chat_template_kwargs`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with an EOS token (text) or a chat template (messages).
        leading_ids (`list[int]`):
            Result of [`~trl_dpo_ext.data.tokenization.leading_special_ids`].
        where (`str`):
            The row's name in messages.
        joint (`bool`, *optional*, defaults to `False`):
            Whether text is tokenised by [`tokenize_jointly`] as well.

    Returns:
        `tuple[list[int], list[list[int]]]`: Ids of the prompt, and of each completion.

    Raises:
        ValueError: If the tokenizer has no EOS token for text, no token is left of the prompt, so that nothing
            predicts a completion's first token, or a completion has none.
    """
    if isinstance(row["prompt"], str) and tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no EOS token, so a completion's end has no probability. Set `tokenizer.eos_token`."
        )
    if isinstance(row["prompt"], str) and not joint:
        return tokenize_apart(row["prompt"], row["completions"], tokenizer, leading_ids, where)
    return tokenize_jointly(row, tokenizer, where)


def tokenize_jointly(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[list[int]]]:
    """
    Token ids as TRL makes them for pairs: the prompt alone, then with each completion; they part where the first
    completion does.

    Chat goes through the chat template, the prompt alone with `add_generation_prompt=True`. Text gets the EOS token
    appended where it lacks it.

    Args:
        row (`Mapping`):
            `prompt` and `completions`, text or messages, and optionally `tools` and `chat_template_kwargs`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with an EOS token (text) or a chat template (messages).
        where (`str`):
            The row's name in messages.

    Returns:
        `tuple[list[int], list[list[int]]]`: Ids of the prompt, and of each completion.

    Raises:
        ValueError: If the prompt shares no token with prompt and completion, a completion adds none to it, or the chat
            template cannot render them.
    """
    prompt, completions = row["prompt"], row["completions"]
    if isinstance(prompt, str):
        eos = tokenizer.eos_token
        texts = [prompt + (text if text.endswith(eos) else text + eos) for text in completions]
        prompt_ids, *whole = tokenizer([prompt, *texts])["input_ids"]
    else:
        tools = row.get("tools")
        kwargs = {
            "tools": json.loads(tools) if isinstance(tools, str) else tools,
            **(row.get("chat_template_kwargs") or {}),
        }
        try:
            prompt_ids = _apply_template(tokenizer, prompt, add_generation_prompt=True, **kwargs)
            whole = [_apply_template(tokenizer, prompt + completion, **kwargs) for completion in completions]
        except TemplateError as error:
            raise ValueError(
                f"The chat template cannot render {where}: {error}. Drop such rows with `dataset.filter`, or use a "
                "template that can."
            ) from error

    start = min(_shared_length(prompt_ids, ids) for ids in whole)
    if not start:
        raise ValueError(
            f"In {where} the prompt's tokens share no start with those of prompt and completion, so nothing predicts "
            "a completion's first token. Give every row a prompt."
        )
    if start < len(prompt_ids):
        # Without the row or the text, so that it comes once
        logger.warning_once(
            "A tokenised prompt is not the start of the tokenised prompt and completion, because the chat template "
            "renders it differently or tokens merge across the border. Completions begin where the two part, and the "
            "prompt loses its end. End prompts on a token border, or use a chat template that renders a prompt alone "
            "as it does before a completion. This is shown once, and may hold for many rows."
        )
    for place, ids in enumerate(whole):
        if len(ids) == start:
            raise ValueError(
                f"`completions[{place}]` in {where} adds no token to its prompt: the chat template leaves it out. "
                "Change the template, or drop such rows with `dataset.filter`."
            )
    return prompt_ids[:start], [ids[start:] for ids in whole]


def _apply_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
    rendered: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **kwargs)
    return rendered["input_ids"]


def _shared_length(ids: Sequence[int], other_ids: Sequence[int]) -> int:
    pairs = zip(ids, other_ids, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(other_ids)))
