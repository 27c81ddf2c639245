"""Batches of samples, composed by prompts and options alone, and computed several at once."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from trl_dpo_ext.sampling.decoding import Continuation


__all__ = ["batches_of", "run_batches", "tokens_per_batch"]


def tokens_per_batch(device: torch.device) -> int:
    """Limit of the tokens of a batch. Samples depend on it in their last bits, so it is not an option."""
    return 8192 if device.type == "cpu" else 32_768


def batches_of(samples: Sequence[Continuation], max_new_tokens: int, max_tokens: int) -> Iterator[list[Continuation]]:
    """
    Divides samples into batches of prompts of similar length, longest first.

    Args:
        samples (`Sequence[Continuation]`):
            Samples.
        max_new_tokens (`int`):
            Maximum number of tokens of a sample.
        max_tokens (`int`):
            Maximum number of tokens of a batch. A batch has at least one sample.

    Example:

    ```python
    >>> from trl_dpo_ext.sampling.batches import batches_of
    >>> from trl_dpo_ext.sampling.decoding import Continuation

    >>> samples = [Continuation(i, [7] * length, 0) for i, length in enumerate([2, 5, 3, 4])]
    >>> [[one.prompt_id for one in batch] for batch in batches_of(samples, max_new_tokens=5, max_tokens=20)]
    [[1, 3], [2, 0]]

    ```
    """
    batch: list[Continuation] = []
    for sample in sorted(samples, key=lambda sample: -len(sample.prompt_ids)):
        longest = len((batch or [sample])[0].prompt_ids) + max_new_tokens
        if batch and (len(batch) + 1) * longest > max_tokens:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def run_batches(
    compute: Callable[[list[Continuation]], None],
    batches: Sequence[list[Continuation]],
    device: torch.device,
    num_at_once: int,
) -> None:
    """
    Computes batches.

    On a CPU every batch is computed by one thread, because sums of several threads may have other last bits. As many
    batches are computed at once as there are threads.

    Args:
        compute (`Callable`):
            Computes a batch.
        batches (`Sequence[list[Continuation]]`):
            Batches.
        device (`torch.device`):
            Device.
        num_at_once (`int`):
            Maximum number of batches that are computed at once on a CPU.
    """
    if device.type != "cpu":
        for batch in batches:
            compute(batch)
        return
    num_threads = torch.get_num_threads()
    workers = max(1, min(num_threads, num_at_once))
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(compute, batches))
    finally:
        torch.set_num_threads(num_threads)  # the last call counts for threads that start later
