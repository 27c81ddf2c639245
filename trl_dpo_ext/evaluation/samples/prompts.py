"""Prompts as token ids, with errors that name the row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_dpo_ext.data.messages import check_text, is_empty
from trl_dpo_ext.data.rankings.tokenization import tokenize_prompt
from trl_dpo_ext.data.tokenization import leading_special_ids
from trl_dpo_ext.models.limits import Limits
from trl_dpo_ext.spelling import likely_column


__all__ = ["PromptTokenizer", "TokenizedPrompt"]


@dataclass
class TokenizedPrompt:
    """
    A prompt to sample completions of.

    Args:
        prompt_id (`int`):
            Index of the prompt, from 0.
        prompt (`str` or `list[dict]`):
            Text or messages.
        token_ids (`list[int]`):
            Its tokens, with the opening of the answer if it is messages.
    """

    prompt_id: int
    prompt: Any
    token_ids: list[int]


class PromptTokenizer:
    """
    Tokenizes prompts as a trainer does: text after the tokenizer's leading tokens, messages by the chat template.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        model ([`~transformers.PreTrainedModel`]):
            Model that continues the prompts.
        max_new_tokens (`int`):
            Maximum number of tokens of a completion.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: Any, max_new_tokens: int):
        self._tokenizer = tokenizer
        self._leading_ids = leading_special_ids(tokenizer)
        self._limits = Limits(model)
        self._max_new_tokens = max_new_tokens
        of_config = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._positions = self._limits.positions or of_config

    def __call__(self, row: Mapping[str, Any], prompt_id: int, where: str) -> TokenizedPrompt:
        """
        Tokenizes the prompt of a row.

        Args:
            row (`Mapping`):
                `prompt`, text or messages, and optionally `tools` and `chat_template_kwargs`.
            prompt_id (`int`):
                Index of the prompt.
            where (`str`):
                Name of the row in messages.

        Raises:
            ValueError: If there is no such prompt, or it is too long.
        """
        if "prompt" not in row:
            similar = likely_column("prompt", row)
            hint = f" Is it `{similar}`? Rename it to `prompt`." if similar else ""
            raise ValueError(f"There is no `prompt` in {where}, only {', '.join(row) or 'no column'}.{hint}")
        check_text(row["prompt"], "prompt", where)
        if not isinstance(row["prompt"], str) and is_empty(row["prompt"]):
            raise ValueError(f"`prompt` in {where} has no text. Give every row a prompt.")
        ids = tokenize_prompt(row, self._tokenizer, self._leading_ids, where)
        self._limits.check(min(ids), max(ids), 0, f"`prompt` in {where}")
        if self._positions is not None and len(ids) + self._max_new_tokens > self._positions:
            raise ValueError(
                f"`prompt` in {where} has {len(ids)} tokens. With `max_new_tokens={self._max_new_tokens}` they exceed "
                f"the {self._positions} positions of the model. Shorten the prompt, or lower `max_new_tokens`."
            )
        return TokenizedPrompt(prompt_id, row["prompt"], ids)
