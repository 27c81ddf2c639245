"""Detection of repeated rows, which accelerate adds to give every process a full last batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard

from trl_dpo_ext.batches import num_examples
from trl_dpo_ext.processes import get_logger


__all__ = ["NUM_REAL", "count_real_examples", "end_of_stream", "num_real_examples"]

logger = get_logger(__name__)


# Entry of a collated batch: the number of its real examples. The others are repeated to fill the batch
NUM_REAL = "num_real_examples"


def _examples_left(accelerator: Accelerator) -> int | None:
    # Examples of the dataset in the current batch of all processes, or `None` if none is repeated
    state = accelerator.gradient_state
    if not state.end_of_dataloader:
        return None
    if state.remainder >= 0:
        return state.remainder or None
    # In a resumed epoch, accelerate's `SkipBatchSampler` hides the batch size and thus the remainder
    loader = state.active_dataloader
    shard = getattr(getattr(loader, "batch_sampler", None), "batch_sampler", None)
    if isinstance(shard, BatchSamplerShard) and not shard.drop_last:
        size = shard.batch_size * (1 if shard.split_batches else shard.num_processes)
        return len(loader.dataset) % size or None
    return None


def num_real_examples(accelerator: Accelerator, collated: Mapping[str, Any], is_last: bool = True) -> int:
    """
    Returns the number of real examples in the batch of this process. They come before the repeated ones.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator whose data loader returned the batch.
        collated (`Mapping`):
            Batch from the collator.
        is_last (`bool`, *optional*, defaults to `True`):
            Whether it is the last batch that the data loader has returned.

    Returns:
        `int`
    """
    here = num_examples(collated)
    left = _examples_left(accelerator)
    if not is_last or left is None or accelerator.parallelism_config is not None:
        return here
    return min(max(left - accelerator.process_index * here, 0), here)


def count_real_examples(accelerator: Accelerator, batches: Sequence[dict[str, Any]], data_parallel_ranks: int) -> int:
    """Stores the number of real examples in each micro-batch of an update. Returns their sum over all processes."""
    in_update = 0
    for number, collated in enumerate(batches, start=1):
        is_last = number == len(batches)
        left = _examples_left(accelerator)
        full = num_examples(collated) * data_parallel_ranks
        in_update += min(left, full) if is_last and left is not None else full
        collated[NUM_REAL] = num_real_examples(accelerator, collated, is_last=is_last)
    return in_update


def end_of_stream(batches: Sequence[Mapping[str, Any]], num_batches: int, updates: int) -> list[dict[str, Any]]:
    """
    Drops the micro-batches of an update that a streaming dataset does not fill.

    transformers would keep their gradients for the next epoch, or loop forever without an update.

    Args:
        batches (`Sequence`):
            Micro-batches of the update.
        num_batches (`int`):
            Number of micro-batches of a full update.
        updates (`int`):
            Number of updates so far.

    Raises:
        ValueError: If the dataset ended before the first update.
    """
    if updates == 0:
        raise ValueError(
            f"The streaming training set ended after {len(batches)} micro-batches, but an update needs {num_batches}. "
            "Lower `global_batch_size` (or `gradient_accumulation_steps`), or stream more rows."
        )
    if batches:
        logger.warning(
            f"The streaming training set ended within an update. Its last {sum(map(num_examples, batches))} rows on "
            "each process are dropped."
        )
    return []
