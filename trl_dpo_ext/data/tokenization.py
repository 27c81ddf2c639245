"""Tokenization like the paper's authors': prompt and answers apart, an EOS id appended, the prompt truncated first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from trl_dpo_ext.data.options import check_modes


__all__ = [
    "TruncatedRow",
    "Truncation",
    "leading_special_ids",
    "tokenize_apart",
    "tokenizer_of",
    "truncate_completions",
]


@dataclass(frozen=True)
class TruncatedRow:
    """
    A prompt with its completions after truncation. With `"joint"` the collator has yet to truncate them.

    Args:
        prompt_ids (`list[int]`): Prompt.
        completion_ids (`list[list[int]]`): Completions.
        prompt_truncated (`bool`): Whether the prompt is truncated.
        completions_truncated (`bool`): Whether a completion is truncated (with `"joint"`: or the prompt).
        kept (`list[list[int]]`): Equal for two completions that are equal after truncation.
        problem (`str`): Why nothing is left to learn from, or `""`.
    """

    prompt_ids: list[int]
    completion_ids: list[list[int]]
    prompt_truncated: bool
    completions_truncated: bool
    kept: list[list[int]]
    problem: str = ""


@dataclass(frozen=True)
class Truncation:
    """
    Rules of tokenization and truncation of a row, by the options of [`~trl_dpo_ext.data.options.RowOptions`].

    Args:
        joint (`bool`, *optional*, defaults to `False`): Whether the collator truncates (each completion with its
            prompt, as in TRL) or preparation (by the authors' rule).
        max_length (`int`, *optional*): Most tokens of a prompt with a completion; `None`: no truncation.
        max_prompt_length (`int`, *optional*): Tokens that the prompt of a long row is truncated to; by default half.
        keep_end (`bool`, *optional*, defaults to `True`): Which end is kept, of the prompt or, with `joint`, of both.
        leading_ids (`tuple[int, ...]`, *optional*): Special ids that stay in front of a truncated prompt.
    """

    joint: bool = False
    max_length: int | None = None
    max_prompt_length: int | None = None
    keep_end: bool = True
    leading_ids: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        tokenization: str = "separate",
        max_length: int | None = None,
        max_prompt_length: int | None = None,
        prompt_truncation_mode: str | None = None,
        truncation_mode: str = "keep_start",
    ) -> "Truncation":
        """
        Returns the rules for a tokenizer or processor and the trainers' options of these names.

        Raises:
            ValueError: If an option has a value that does not exist.
        """
        check_modes(tokenization, prompt_truncation_mode, truncation_mode)
        joint = tokenization == "joint"
        mode = truncation_mode if joint else prompt_truncation_mode or "keep_end"
        leading_ids = tuple(leading_special_ids(tokenizer_of(processing_class)))
        return cls(joint, max_length, max_prompt_length, mode == "keep_end", leading_ids)

    def __call__(self, prompt_ids: list[int], completion_ids: Sequence[list[int]]) -> TruncatedRow:
        """Truncates a prompt with its completions. With `joint` it only finds what the collator will truncate."""
        completion_ids = list(completion_ids)
        if self.max_length is None:
            return TruncatedRow(prompt_ids, completion_ids, False, False, completion_ids)
        if self.joint:
            return self._by_collator(prompt_ids, completion_ids, self.max_length)
        prompt_ids, completion_ids, prompt_truncated, completions_truncated = truncate_completions(
            prompt_ids,
            completion_ids,
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length or self.max_length // 2,
            keep_end=self.keep_end,
            leading_ids=list(self.leading_ids),
        )
        return TruncatedRow(prompt_ids, completion_ids, prompt_truncated, completions_truncated, completion_ids)

    def is_full(self, prompt_ids: list[int]) -> bool:
        """Whether the collator will keep the start of a row, and its prompt leaves no room for a completion."""
        return self.joint and not self.keep_end and self.max_length is not None and len(prompt_ids) >= self.max_length

    def truncates_end(self, prompt_ids: list[int], ids: list[int], kept: list[int]) -> bool:
        """Whether a completion, of which truncation keeps `kept`, loses its last token."""
        if self.joint and self.max_length is not None:
            return not self.keep_end and len(prompt_ids) + len(ids) > self.max_length
        return len(kept) < len(ids)

    def _by_collator(self, prompt_ids: list[int], completion_ids: list[list[int]], max_length: int) -> TruncatedRow:
        num_prompt = len(prompt_ids)
        excess = [max(num_prompt + len(ids) - max_length, 0) for ids in completion_ids]
        if self.keep_end:
            # Of the prompt each completion leaves as much as it has room for
            kept = [
                [max(num_prompt - over, 0), *ids[max(over - num_prompt, 0) :]]
                for ids, over in zip(completion_ids, excess, strict=True)
            ]
        else:
            kept = [ids[: max(max_length - num_prompt, 0)] for ids in completion_ids]
        problem = f"its prompt fills `max_length={max_length}`" if self.is_full(prompt_ids) else ""
        return TruncatedRow(prompt_ids, completion_ids, False, any(excess), kept, problem)


def tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer of a processor; a tokenizer as it is."""
    return processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class


def leading_special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer puts before a text (BOS for Llama), without the ones it may append after it."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return []


def tokenize_apart(
    prompt: str, completions: Sequence[str], tokenizer: PreTrainedTokenizerBase, leading_ids: Sequence[int], where: str
) -> tuple[list[int], list[list[int]]]:
    """
    Tokenizes a prompt and its completions apart and appends the EOS id to each completion that lacks it.

    Differs from the authors' code: special tokens that the tokenizer puts before a prompt are kept (the authors drop
    a BOS), and an EOS already at the end of a completion is not doubled (the authors refuse such text).

    Args:
        prompt (`str`):
            Prompt.
        completions (`Sequence[str]`):
            Any number of completions.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with an EOS token.
        leading_ids (`Sequence[int]`):
            Result of [`leading_special_ids`].
        where (`str`):
            The row's name in messages.

    Returns:
        `tuple[list[int], list[list[int]]]`: Ids of the prompt, and of each completion.

    Raises:
        ValueError: If the prompt has no token, so that nothing predicts a completion's first token.
    """
    prompt_ids, *completion_ids = tokenizer([prompt, *completions], add_special_tokens=False)["input_ids"]
    prompt_ids = [*leading_ids, *prompt_ids]
    if not prompt_ids:
        raise ValueError(
            f"`prompt` in {where} is empty and the tokenizer adds no BOS token, so nothing predicts the first token "
            "of an answer. Give every row a prompt."
        )
    eos = [tokenizer.eos_token_id]
    return prompt_ids, [ids if ids[-1:] == eos else ids + eos for ids in completion_ids]


def truncate_completions(
    prompt_ids: list[int],
    completion_ids: Sequence[list[int]],
    *,
    max_length: int,
    max_prompt_length: int,
    keep_end: bool,
    leading_ids: Sequence[int],
) -> tuple[list[int], list[list[int]], bool, bool]:
    """
    Truncates a long prompt with its completions by the authors' rule.

    With P prompt tokens and R tokens in the longest completion, nothing is truncated if `P + R <= max_length`.
    Otherwise the prompt is truncated to `max_prompt_length`. If that is not enough, every completion is truncated to
    its first `max_length - max_prompt_length` tokens, whatever the length of the prompt. The longest completion then
    loses its EOS.

    Args:
        prompt_ids (`list[int]`):
            Prompt.
        completion_ids (`Sequence[list[int]]`):
            Its completions, one or more.
        max_length (`int`):
            Most tokens a prompt with its completion may have.
        max_prompt_length (`int`):
            Tokens that the prompt of a long row is truncated to.
        keep_end (`bool`):
            Whether the prompt's end is kept, or its start.
        leading_ids (`Sequence[int]`):
            Special ids that stay in front of a truncated prompt.

    Returns:
        `tuple`: The prompt, its completions, whether the prompt was truncated, and whether a completion was.
    """
    completion_ids = list(completion_ids)
    longest = max(map(len, completion_ids))
    prompt_truncated = completions_truncated = False
    if len(prompt_ids) + longest > max_length:
        prompt_truncated = len(prompt_ids) > max_prompt_length
        if prompt_truncated:
            kept = leading_ids if prompt_ids[: len(leading_ids)] == leading_ids else []
            rest = prompt_ids[len(kept) :]
            room = max_prompt_length - len(kept)
            prompt_ids = kept + (rest[len(rest) - room :] if keep_end else rest[:room])
        if len(prompt_ids) + longest > max_length:
            room = max_length - max_prompt_length
            completions_truncated = longest > room
            completion_ids = [ids[:room] for ids in completion_ids]
    return prompt_ids, completion_ids, prompt_truncated, completions_truncated
