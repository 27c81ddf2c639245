"""Batches of pairs with images, and whether the cut left each of them an answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


__all__ = ["NO_ANSWER_LEFT", "ImageCollator"]

# Entry of a batch in which the cut left a row no token of an answer to learn from
NO_ANSWER_LEFT = "no_answer_left"


@dataclass
class ImageCollator:
    """
    A collator of pairs with images that notes where nothing is left of an answer: how many tokens an image takes is
    known only here.

    Args:
        collator (`Callable`): TRL's collator, which cuts.
    """

    collator: Callable[[Sequence[Any]], dict[str, Any]]

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        """The batch of the collator."""
        batch = self.collator(examples)
        if not batch["completion_mask"][:, 1:].any(dim=1).all():
            batch[NO_ANSWER_LEFT] = True
        return batch
