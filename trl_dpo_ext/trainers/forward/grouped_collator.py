"""A collator that finds out which rows share a prompt, before they go to a GPU."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from datasets import Dataset

from trl_dpo_ext.batches import with_groups


__all__ = ["GroupedCollator", "grouped"]


class GroupedCollator:
    """
    Adds to the batches of a collator of text which of their rows share a prompt.

    Args:
        collator (`Callable`):
            TRL's collator of pairs, that of rankings, or one that makes such batches.
        largest (`int`):
            Completions of the largest group of any process's batches.
    """

    def __init__(self, collator: Callable[[Sequence[Any]], dict[str, Any]], largest: int):
        self.collator = collator
        self.largest = largest

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        return with_groups(self.collator(rows), self.largest)


@contextmanager
def grouped(trainer: Any, dataset: Any) -> Iterator[None]:
    """Has the data loader that a trainer makes for a dataset find groups, where its batches may hold them."""
    given = trainer.data_collator
    # What one process reads for all, such as a stream, accelerate sends as tensors alone
    if isinstance(dataset, Dataset) and not trainer.accelerator.dispatch_batches and not trainer._is_vision_dataset:
        trainer.data_collator = GroupedCollator(given, trainer.largest)
    try:
        yield
    finally:
        trainer.data_collator = given
