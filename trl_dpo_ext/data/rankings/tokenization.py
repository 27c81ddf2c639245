"""Tokenization of a prompt with its K completions, as in the authors' code or as in TRL."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging
from trl import prepare_multimodal_messages

from trl_dpo_ext.data.messages import template_arguments
from trl_dpo_ext.data.tokenization import tokenize_apart, tokenizer_of


__all__ = ["PAIR", "tokenize_jointly", "tokenize_prompt", "tokenize_ranking"]

logger = logging.get_logger(__name__)

PAIR = ("chosen", "rejected")

# Errors of Jinja's and of Python's that the expressions of a template raise
_TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def tokenize_ranking(
    row: Mapping[str, Any],
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    leading_ids: Sequence[int],
    where: str,
    *,
    joint: bool = False,
    names: Sequence[str] = (),
) -> tuple[list[int], list[list[int]]]:
    """
    Token ids of a prompt and of its completions.

    Text is tokenized apart by [`~trl_dpo_ext.data.tokenization.tokenize_apart`], chat by [`tokenize_jointly`].

    Args:
        row (`Mapping`):
            `prompt` and `completions`, text or messages, and optionally `tools` and `chat_template_kwargs`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer with an EOS token (text) or a chat template (messages), or a processor with such a tokenizer.
        leading_ids (`Sequence[int]`):
            Result of [`~trl_dpo_ext.data.tokenization.leading_special_ids`].
        where (`str`):
            The row's name in messages.
        joint (`bool`, *optional*, defaults to `False`):
            Whether text is tokenized by [`tokenize_jointly`] as well.
        names (`Sequence[str]`, *optional*):
            Columns of the completions, for messages; by default their indices in `completions`.

    Returns:
        `tuple[list[int], list[list[int]]]`: Ids of the prompt, and of each completion.

    Raises:
        ValueError: If the tokenizer has no EOS token for text, no token is left of the prompt, so that nothing
            predicts a completion's first token, or a completion has none.
    """
    tokenizer = tokenizer_of(processing_class)
    if isinstance(row["prompt"], str) and tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no EOS token, so a completion's end has no probability. Set `tokenizer.eos_token`."
        )
    if isinstance(row["prompt"], str) and not joint:
        return tokenize_apart(row["prompt"], row["completions"], tokenizer, leading_ids, where)
    names = names or [f"completions[{place}]" for place in range(len(row["completions"]))]
    return tokenize_jointly(row, processing_class, where, tokenizer.eos_token, names)


def tokenize_jointly(
    row: Mapping[str, Any],
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    where: str,
    eos_token: str | None,
    names: Sequence[str],
) -> tuple[list[int], list[list[int]]]:
    """
    Token ids as in TRL: of the prompt alone, then of the prompt with each completion. Completions begin at the first
    token in which one of these differs from the prompt alone.

    Chat goes through the chat template, the prompt alone with `add_generation_prompt=True`. Text gets the EOS token
    appended where it lacks it.

    Args:
        row (`Mapping`):
            `prompt` and `completions`, text or messages, and optionally `tools` and `chat_template_kwargs`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer or processor, of messages with a chat template.
        where (`str`):
            The row's name in messages.
        eos_token (`str`, *optional*):
            Token that ends text.
        names (`Sequence[str]`):
            Columns of the completions, for messages.

    Returns:
        `tuple[list[int], list[list[int]]]`: Ids of the prompt, and of each completion.

    Raises:
        ValueError: If the prompt shares no token with prompt and completion, a completion adds none to it, or the chat
            template cannot render them.
    """
    prompt, completions = row["prompt"], row["completions"]
    if isinstance(prompt, str):
        assert eos_token is not None, "checked by `tokenize_ranking`"
        texts = [prompt + (text if text.endswith(eos_token) else text + eos_token) for text in completions]
        prompt_ids, *whole = processing_class(text=[prompt, *texts])["input_ids"]
    else:
        kwargs = _template_arguments(row, processing_class, where)
        prompt_ids = _render(processing_class, prompt, "prompt", where, add_generation_prompt=True, **kwargs)
        whole = [
            _render(processing_class, prompt + completion, name, where, **kwargs)
            for name, completion in zip(names, completions, strict=True)
        ]

    start = min(_shared_length(prompt_ids, ids) for ids in whole)
    if not start:
        raise ValueError(
            f"In {where} the tokens of `prompt` share no start with those of prompt and completion, so nothing "
            "predicts a completion's first token. Give every row a prompt."
        )
    if start < len(prompt_ids):
        # Without the row or the text, so that it comes once
        logger.warning_once(
            "A tokenized prompt is not the start of the tokenized prompt and completion, because the chat template "
            "renders it differently or tokens merge across the border. Completions begin where the two part, and the "
            "prompt loses its end. End prompts on a token border, or use a chat template that renders a prompt alone "
            "as it does before a completion. This is shown once, and may hold for many rows."
        )
    for place, ids in enumerate(whole):
        if len(ids) == start:
            raise ValueError(
                f"`{names[place]}` in {where} adds no token to its prompt: the chat template leaves it out. "
                "Change the template, or drop such rows with `dataset.filter`."
            )
    return prompt_ids[:start], [ids[start:] for ids in whole]


def tokenize_prompt(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, leading_ids: Sequence[int], where: str
) -> list[int]:
    """
    Token ids of a prompt without a completion, which a model is to continue.

    Args:
        row (`Mapping`):
            `prompt`, text or messages, and optionally `tools` and `chat_template_kwargs`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer, with a chat template for messages.
        leading_ids (`Sequence[int]`):
            Result of [`~trl_dpo_ext.data.tokenization.leading_special_ids`].
        where (`str`):
            The row's name in messages.

    Returns:
        `list[int]`

    Raises:
        ValueError: If no token is left of the prompt, or the chat template cannot render it.
    """
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return tokenize_apart(prompt, [], tokenizer, leading_ids, where)[0]
    kwargs = _template_arguments(row, tokenizer, where)
    return _render(tokenizer, prompt, "prompt", where, add_generation_prompt=True, **kwargs)


def _template_arguments(
    row: Mapping[str, Any], processing_class: PreTrainedTokenizerBase | ProcessorMixin, where: str
) -> dict[str, Any]:
    kwargs = template_arguments(row, where)
    if processing_class.chat_template is None and "chat_template" not in kwargs:
        raise ValueError(
            "The rows are conversations and the tokenizer has no chat template. Use the tokenizer of a model that "
            "was trained on conversations, or set `tokenizer.chat_template`."
        )
    return kwargs


def _render(
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    messages: list[dict[str, Any]],
    name: str,
    where: str,
    **kwargs: Any,
) -> list[int]:
    try:
        if isinstance(processing_class, ProcessorMixin):
            messages = prepare_multimodal_messages(messages)
        rendered: Any = processing_class.apply_chat_template(messages, tokenize=True, return_dict=True, **kwargs)
    except _TEMPLATE_ERRORS as error:  # none says which row it was
        kind = "" if isinstance(error, (TemplateError, ValueError)) else f"{type(error).__name__}: "
        raise ValueError(
            f"The chat template cannot render `{name}` in {where}: {kind}{error}. Drop such rows with "
            "`dataset.filter`, or use a template that can."
        ) from error
    ids: list[int] = (
        rendered["input_ids"][0] if isinstance(processing_class, ProcessorMixin) else rendered["input_ids"]
    )
    return ids


def _shared_length(ids: Sequence[int], other_ids: Sequence[int]) -> int:
    pairs = zip(ids, other_ids, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(other_ids)))
