"""Which rows of a batch are real: accelerate repeats rows to give every process a full last batch."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor

from trl_dpo_ext.logps import stacked_to_pairs


__all__ = [
    "NUM_REAL_ROWS",
    "first_pairs",
    "first_rows",
    "is_ranked",
    "num_real_rows",
    "num_rows",
    "num_rows_everywhere",
    "real_rows_of",
    "tokens_of_rows",
]


# Entry of a batch: how many of its rows are real. The others were repeated to fill the batch.
NUM_REAL_ROWS = "num_real_rows"


def is_ranked(batch: Mapping[str, Any]) -> bool:
    """Whether a batch holds groups `(B, K, T)` of ranked completions, and not TRL's stacked pairs `(2B, T)`."""
    return "rank_mask" in batch


def num_rows(batch: Mapping[str, Any]) -> int:
    """Examples in a batch: groups, or pairs in TRL's stacked rows `[all chosen; all rejected]`."""
    return batch["input_ids"].size(0) if is_ranked(batch) else batch["input_ids"].size(0) // 2


def real_rows_of(batch: Mapping[str, Any]) -> int:
    """How many of a batch's rows are real, as noted in it."""
    return batch.get(NUM_REAL_ROWS, num_rows(batch))


def tokens_of_rows(batch: Mapping[str, Any]) -> Tensor:
    """Tokens of each row, padding left out, `(B,)`."""
    attention_mask = batch["attention_mask"]
    groups = attention_mask if is_ranked(batch) else stacked_to_pairs(attention_mask)  # (B, K, T)
    return groups.sum(dim=(1, 2))


def _rows_left(accelerator: Accelerator) -> int | None:
    # Rows of the data set in the current batch of all processes, `None` where none is repeated
    state = accelerator.gradient_state
    if not state.end_of_dataloader:
        return None
    if state.remainder >= 0:
        return state.remainder or None
    # A resumed epoch: accelerate's `SkipBatchSampler` hides the batch size, and with it the remainder
    loader = state.active_dataloader
    shard = getattr(getattr(loader, "batch_sampler", None), "batch_sampler", None)
    if isinstance(shard, BatchSamplerShard) and not shard.drop_last:
        size = shard.batch_size * (1 if shard.split_batches else shard.num_processes)
        return len(loader.dataset) % size or None
    return None


def num_real_rows(accelerator: Accelerator, batch: Mapping[str, Any], is_last: bool = True) -> int:
    """
    Returns how many of the first rows of this process's batch are real; the others were repeated by accelerate.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator whose data loader made the batch.
        batch (`Mapping`):
            The batch.
        is_last (`bool`, *optional*, defaults to `True`):
            Whether it is the one the data loader gave out last.

    Returns:
        `int`
    """
    rows = num_rows(batch)
    left = _rows_left(accelerator)
    if not is_last or left is None or accelerator.parallelism_config is not None:
        return rows
    return min(max(left - accelerator.process_index * rows, 0), rows)


def num_rows_everywhere(accelerator: Accelerator, rows: int, data_parallel_ranks: int, is_last: bool) -> int:
    """Returns the real rows of a micro-batch over all processes; `rows` are this one's, repeated ones included."""
    left = _rows_left(accelerator)
    full = rows * data_parallel_ranks
    return min(left, full) if is_last and left is not None else full


def first_pairs(stacked: Tensor, pairs: int) -> Tensor:
    """Keeps the first pairs of stacked rows `(2B, ...)`."""
    return stacked.unflatten(0, (2, -1))[:, :pairs].flatten(0, 1)


def first_rows(batch: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Keeps the first rows of a text batch."""
    total = num_rows(batch)

    def keep(value: Tensor) -> Tensor:
        # Groups, or one value per pair, such as reference log-probabilities
        return value[:rows] if value.size(0) == total else first_pairs(value, rows)

    return {name: keep(value) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
