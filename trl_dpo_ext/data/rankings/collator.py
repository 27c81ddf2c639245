"""Batches of rankings: prompt with each completion, padded to `(B, K, T)`."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.data.data_collator import DataCollatorMixin

from trl_dpo_ext.batches import RANKING_REF_LOGPS_COLUMN
from trl_dpo_ext.data.rankings.order import as_ranking


__all__ = ["DataCollatorForRanking"]


@dataclass
class DataCollatorForRanking(DataCollatorMixin):
    """
    Data collator used for rankings. Prompts with their completions are padded to the longest of the batch, and rows to
    the largest number of completions.

    Axes: **B** rows, **K** completions of the row that has most, **T** tokens. Each example holds `"prompt_ids"`,
    `"completion_ids"` (a list per completion, best first) and, optionally, `"ranks"` (left out: no ties) and
    `"ref_logps"` (a number per completion). A preference pair as TRL tokenizes it (`"chosen_ids"`, `"rejected_ids"`,
    and optionally `"ref_chosen_logps"`, `"ref_rejected_logps"`) is a ranking of two. The returned dictionary holds:
    - `"input_ids"`: Token ids of shape `(B, K, T)`, the padding token where there is none.
    - `"attention_mask"`: 1 at every token of a prompt or completion, of shape `(B, K, T)`.
    - `"completion_mask"`: 1 at every token of a completion, of shape `(B, K, T)`.
    - `"rank_mask"`: `True` where a row has a completion, of shape `(B, K)`. Where it has none, both masks above are 0
        throughout.
    - `"ranks"`: Rank of each completion, 0 for the best, equal for ties, -1 where there is none, of shape `(B, K)`.
    - `"ref_logps"`: If the examples have it, float32 of shape `(B, K)`, 0 where there is no completion.

    Args:
        pad_token_id (`int`):
            Token id to use for padding.
        max_length (`int`, *optional*):
            Most tokens of a prompt with a completion. Longer ones are truncated, each by itself, as by TRL's collator.
        truncation_mode (`str`, *optional*, defaults to `"keep_start"`):
            Which end of a truncated one is kept, `"keep_start"` or `"keep_end"`.
        pad_to_multiple_of (`int`, *optional*):
            If set, T is a multiple of this value.
        return_tensors (`str`, *optional*, defaults to `"pt"`):
            Type of tensor to return. Only `"pt"` is supported.

    Raises:
        ValueError: If `truncation_mode` does not exist.

    Example:
    ```python
    >>> from trl_dpo_ext.data.rankings.collator import DataCollatorForRanking

    >>> collator = DataCollatorForRanking(pad_token_id=0)
    >>> examples = [
    ...     {"prompt_ids": [1, 2], "completion_ids": [[3], [4, 5], [6]], "ranks": [0, 1, 1]},
    ...     {"prompt_ids": [7], "completion_ids": [[8, 9], [8]], "ranks": [0, 1]},
    ... ]
    >>> batch = collator(examples)
    >>> batch["input_ids"]
    tensor([[[1, 2, 3, 0],
             [1, 2, 4, 5],
             [1, 2, 6, 0]],
    <BLANKLINE>
            [[7, 8, 9, 0],
             [7, 8, 0, 0],
             [0, 0, 0, 0]]])
    >>> batch["completion_mask"][0]
    tensor([[0, 0, 1, 0],
            [0, 0, 1, 1],
            [0, 0, 1, 0]])
    >>> batch["rank_mask"]
    tensor([[ True,  True,  True],
            [ True,  True, False]])
    >>> batch["ranks"]
    tensor([[ 0,  1,  1],
            [ 0,  1, -1]])

    ```
    """

    pad_token_id: int
    max_length: int | None = None
    truncation_mode: str = "keep_start"
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __post_init__(self) -> None:
        if self.truncation_mode not in ("keep_start", "keep_end"):
            raise ValueError(
                f"`truncation_mode={self.truncation_mode!r}` does not exist. Choose one of 'keep_start', 'keep_end'."
            )

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [as_ranking(example) for example in examples]
        # For each row and completion: its ids with the prompt's, and how many of them are the prompt's
        sequences = [[self._cut(row["prompt_ids"], ids) for ids in row["completion_ids"]] for row in rows]
        num_completions = max(map(len, sequences))
        num_tokens = max(len(ids) for row in sequences for ids, _ in row)
        if self.pad_to_multiple_of is not None:
            num_tokens = -(-num_tokens // self.pad_to_multiple_of) * self.pad_to_multiple_of

        input_ids = torch.full((len(rows), num_completions, num_tokens), self.pad_token_id)  # (B, K, T)
        starts, ends = torch.zeros(2, len(rows), num_completions, 1, dtype=torch.long)  # (B, K, 1)
        ranks = torch.full((len(rows), num_completions), -1)  # (B, K)
        ref_logps = torch.zeros(len(rows), num_completions)  # (B, K)
        for b, row in enumerate(rows):
            for k, (ids, start) in enumerate(sequences[b]):
                input_ids[b, k, : len(ids)] = torch.tensor(ids)
                starts[b, k], ends[b, k] = start, len(ids)
            size = len(sequences[b])
            ranks[b, :size] = torch.tensor(row.get("ranks", range(size)))
            if RANKING_REF_LOGPS_COLUMN in row:
                ref_logps[b, :size] = torch.tensor(row[RANKING_REF_LOGPS_COLUMN])

        positions = torch.arange(num_tokens)
        batch = {
            "input_ids": input_ids,
            "attention_mask": (positions < ends).long(),
            "completion_mask": ((positions >= starts) & (positions < ends)).long(),
            "rank_mask": ranks >= 0,
            "ranks": ranks,
        }
        if RANKING_REF_LOGPS_COLUMN in rows[0]:
            batch[RANKING_REF_LOGPS_COLUMN] = ref_logps
        return batch

    def _cut(self, prompt_ids: list[int], completion_ids: list[int]) -> tuple[list[int], int]:
        ids, num_prompt = prompt_ids + completion_ids, len(prompt_ids)
        excess = 0 if self.max_length is None else max(len(ids) - self.max_length, 0)
        if self.truncation_mode == "keep_end":
            return ids[excess:], max(num_prompt - excess, 0)
        return ids[: len(ids) - excess], num_prompt
