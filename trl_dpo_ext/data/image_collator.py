"""Batches of pairs with images, and whether the cut left each of them an answer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl_dpo_ext.data.messages import text_of


__all__ = ["NO_ANSWER_LEFT", "ImageCollator", "no_answer_left"]

# Entry of a batch in which the cut left a row no token of an answer to learn from: the text of its prompt
NO_ANSWER_LEFT = "no_answer_left"

_SHOWN = 60  # characters of a prompt


def no_answer_left(row: str, max_length: int | None) -> str:
    """The message for a row with images that the cut leaves nothing to learn from."""
    return (
        f"`max_length={max_length}` leaves {row} no token of an answer to learn from. Raise it above what an image "
        "with its prompt takes, or set it to `None` to disable truncation."
    )


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
        is_left = batch["completion_mask"][:, 1:].any(dim=1)
        if not is_left.all():
            example = examples[int(is_left.int().argmin()) % len(examples)]
            batch[NO_ANSWER_LEFT] = repr(text_of(example.get("prompt") or example["chosen"]).strip()[:_SHOWN])
        return batch

    def check_first(self, dataset: Iterable[Mapping[str, Any]], dataset_name: str, max_length: int | None) -> None:
        """
        Checks the first row: images of one size take as many tokens in every other.

        Raises:
            ValueError: If the cut leaves it no token of an answer.
        """
        for row in dataset:
            if NO_ANSWER_LEFT in self([row]):
                raise ValueError(no_answer_left(f"row 0 of the {dataset_name} dataset", max_length))
            break
