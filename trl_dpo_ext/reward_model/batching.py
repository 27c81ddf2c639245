"""Token ids of prompts and completions, truncated as in training, in batches of similar size."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_dpo_ext.data.options import RowOptions
from trl_dpo_ext.data.row_preparation import prepare_row
from trl_dpo_ext.data.tokenization import Truncation


__all__ = ["PromptPart", "TokenizedRow", "batches_of", "parts_of", "rows_from", "tokenize_row", "tokenize_rows"]

logger = logging.get_logger(__name__)

# Limit of the size of a padded batch on the CPU, as a multiple of `max_tokens`
_PADDED = 8


class TokenizedRow(NamedTuple):
    """Token ids of a row's prompt and completions, and whether they are truncated (joint: by the collator)."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]
    cut: bool


@dataclass
class PromptPart:
    """Completions of one prompt that run together, and their indices among all completions."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]
    numbers: list[int]

    @property
    def distinct(self) -> int:
        """Number of tokens if the prompt is computed once."""
        return len(self.prompt_ids) + sum(map(len, self.completion_ids))

    @property
    def longest(self) -> int:
        """Number of tokens of the prompt with its longest completion."""
        return len(self.prompt_ids) + max(map(len, self.completion_ids))


def rows_from(prompts: Iterable[Any], completions: Iterable[Any]) -> tuple[list[dict[str, Any]], bool]:
    """
    Returns rows of prompts with their completions, of which each prompt has one or a list.

    Args:
        prompts (`Iterable`):
            Texts, or lists of messages.
        completions (`Iterable`):
            For each prompt a text or a list of messages, or a list of those.

    Returns:
        `tuple[list[dict], bool]`: Rows with `prompt` and `completions`, and whether completions were given as lists.

    Raises:
        ValueError: If the numbers or the types of prompts and completions do not match.
    """
    for name, values in {"prompts": prompts, "completions": completions}.items():
        if isinstance(values, (str, Mapping)):
            kind = "text" if isinstance(values, str) else "dict"
            raise ValueError(f"`{name}` is a {kind}. Expected a list, with one entry for each prompt.")
    prompts, completions = list(prompts), list(completions)
    if len(prompts) != len(completions):
        raise ValueError(
            f"`prompts` has {len(prompts)} entries but `completions` has {len(completions)}. Pass one completion or a "
            "list of completions for each prompt."
        )
    several = [_is_several(entry) for entry in completions]
    if len(set(several)) > 1:
        odd = several.index(not several[0])
        kinds = ("a list of completions", "one completion") if several[0] else ("one completion", "a list")
        raise ValueError(f"`completions[0]` is {kinds[0]} but `completions[{odd}]` is {kinds[1]}. Use the same type.")
    nested = bool(several) and several[0]
    rows = [
        {"prompt": prompt, "completions": list(entry) if nested else [entry]}
        for prompt, entry in zip(prompts, completions, strict=True)
    ]
    return rows, nested


def tokenize_row(
    row: Mapping[str, Any], number: int, tokenizer: PreTrainedTokenizerBase, truncation: Truncation, name: str
) -> TokenizedRow:
    """
    Returns the token ids of a row, truncated as by a trainer.

    Args:
        row (`Mapping`):
            Row with `completions` (or `chosen` and `rejected`), which are truncated together. `prompt` may be missing
            if the completions contain it.
        number (`int`):
            Index of the row, for messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        truncation ([`~trl_dpo_ext.data.tokenization.Truncation`]):
            Rules of tokenization and truncation. With `tokenization="joint"` the collator truncates later.
        name (`str`):
            Name of the rows in messages.

    Raises:
        ValueError: If the row is malformed.
    """
    prepared = prepare_row(
        row, number, dataset_name=name, processing_class=tokenizer, truncation=truncation, keep_all=True
    )
    prompt_ids, *completion_ids = prepared.truncated_ids
    return TokenizedRow(prompt_ids, completion_ids, prepared.prompt_truncated or prepared.completions_truncated)


def tokenize_rows(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, options: RowOptions, name: str
) -> list[TokenizedRow]:
    """Tokenizes every row. Warns with the number of truncated rows."""
    truncation = Truncation.of(tokenizer, **vars(options))
    tokenized = [tokenize_row(row, number, tokenizer, truncation, name) for number, row in enumerate(rows)]
    num_cut = sum(row.cut for row in tokenized)
    if num_cut:
        full = [row for row in tokenized if len(row.prompt_ids) >= (options.max_length or 0)]
        none_left = options.joint and options.truncation_mode == "keep_start" and len(full)
        logger.warning(
            f"{num_cut} of {len(tokenized)} rows exceed `max_length={options.max_length}` and are truncated as in "
            "training." + (f" {none_left} of them have no completion left and get reward 0." if none_left else "")
        )
    return tokenized


def parts_of(tokenized: Iterable[TokenizedRow], max_tokens: int, shared: bool) -> list[PromptPart]:
    """
    Groups completions of equal prompts, also of different rows, into parts of up to `max_tokens` tokens.

    Args:
        tokenized (`Iterable`):
            Ids of prompts and completions. Completions are numbered in this order.
        max_tokens (`int`):
            Maximum number of tokens of a part. A part has at least one completion.
        shared (`bool`):
            Whether a prompt is computed once for its completions.

    Example:
    ```python
    >>> from trl_dpo_ext.reward_model.batching import TokenizedRow, parts_of

    >>> rows = [([1, 2], [[3], [4, 4]]), ([7], [[8]]), ([1, 2], [[5]])]
    >>> rows = [TokenizedRow(*row, cut=False) for row in rows]
    >>> [part.numbers for part in parts_of(rows, max_tokens=100, shared=True)]
    [[0, 1, 3], [2]]
    >>> [part.numbers for part in parts_of(rows, max_tokens=5, shared=True)]
    [[0, 1], [3], [2]]

    ```
    """
    by_prompt: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    number = 0
    for row in tokenized:
        same_prompt = by_prompt.setdefault(tuple(row.prompt_ids), [])
        for ids in row.completion_ids:
            same_prompt.append((number, ids))
            number += 1
    parts = []
    for prompt, numbered in by_prompt.items():
        part, distinct, longest = PromptPart(list(prompt), [], []), len(prompt), 0
        for number, ids in numbered:
            distinct, longest = distinct + len(ids), max(longest, len(prompt) + len(ids))
            if part.numbers and (distinct if shared else (len(part.numbers) + 1) * longest) > max_tokens:
                parts.append(part)
                part = PromptPart(part.prompt_ids, [], [])
                distinct = longest = len(prompt) + len(ids)
            part.completion_ids.append(ids)
            part.numbers.append(number)
        parts.append(part)
    return parts


def batches_of(parts: Sequence[PromptPart], max_tokens: int, shared: bool) -> list[list[PromptPart]]:
    """
    Groups parts into batches of up to `max_tokens` tokens, largest first, so that memory runs out early or never.

    Args:
        parts (`Sequence[PromptPart]`):
            Parts of up to `max_tokens` tokens. A larger part gets its own batch.
        max_tokens (`int`):
            Maximum number of tokens of a batch.
        shared (`bool`):
            Whether each prompt is computed once, without padding.
    """
    batches: list[list[PromptPart]] = []
    distinct = rows = longest = most = 0
    for part in sorted(parts, key=lambda part: -(part.distinct if shared else part.longest)):
        distinct, rows = distinct + part.distinct, rows + len(part.numbers)
        longest, most = max(longest, part.longest), max(most, len(part.numbers))
        computed = distinct if shared else rows * longest
        padded = (len(batches[-1]) + 1) * most * longest if batches else 0
        if not batches or computed > max_tokens or padded > _PADDED * max_tokens:
            batches.append([])
            distinct, rows, longest, most = part.distinct, len(part.numbers), part.longest, len(part.numbers)
        batches[-1].append(part)
    return batches


def _is_several(entry: Any) -> bool:
    # A list of messages contains dicts
    return (
        isinstance(entry, Sequence) and not isinstance(entry, str) and not any(isinstance(e, Mapping) for e in entry)
    )
