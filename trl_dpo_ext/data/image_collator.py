"""Data collator for pairs with images. It checks that truncation leaves every pair an answer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from trl_dpo_ext.data.messages import text_of


__all__ = ["NO_ANSWER_LEFT", "ImageCollator", "images_explained"]

# Entry of a batch if truncation left no token of an answer in a row: the text of its prompt
NO_ANSWER_LEFT = "no_answer_left"

_SHOWN = 60  # characters of a prompt


def _no_answer_left(row: str, max_length: int | None) -> str:
    """The message for a row with images whose answers are truncated to nothing."""
    return (
        f"`max_length={max_length}` leaves {row} no token of an answer to learn from. Raise it above what an image "
        "with its prompt takes, or set it to `None` to disable truncation."
    )


@contextmanager
def images_explained(collated: dict[str, Any], max_length: int | None) -> Iterator[None]:
    """
    Runs a batch of pairs, and explains an error that comes from a truncated image or answer.

    Raises:
        ValueError: If an image is truncated (with TRL's message), or no token of an answer is left.
    """
    prompt = collated.pop(NO_ANSWER_LEFT, None)
    try:
        yield
    except ValueError as error:
        # TRL's words for a model's terse error
        if "Image features and image tokens do not match" in str(error) and max_length is not None:
            raise ValueError(
                f"The current `max_length` ({max_length}) is too short and causes image placeholder "
                "tokens in `input_ids` to be truncated, while the corresponding image features remain intact. "
                "Please increase `max_length` or set it to `None` to disable truncation."
            ) from error
        raise
    if prompt is not None:
        raise ValueError(_no_answer_left(f"the row whose prompt begins with {prompt}", max_length))


class ImageCollator:
    """
    A collator of pairs with images that notes where nothing is left of an answer: how many tokens an image takes is
    known only here.

    Args:
        collator (`Callable`): TRL's collator, which truncates.
        max_length (`int`): Length that it truncates to.
        datasets (`Mapping`): Datasets by name. The first row of each is checked: images of one size take as many
            tokens in every other.

    Raises:
        ValueError: If truncation leaves no token of an answer in the first row of a dataset.
    """

    def __init__(
        self,
        collator: Callable[[Sequence[Any]], dict[str, Any]],
        max_length: int,
        datasets: Mapping[str, Iterable[Mapping[str, Any]] | None],
    ):
        self.collator = collator
        for name, rows in datasets.items():
            for row in rows or []:
                if NO_ANSWER_LEFT in self([row]):
                    raise ValueError(_no_answer_left(f"row 0 of the {name} dataset", max_length))
                break

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        """The batch of the collator."""
        batch = self.collator(examples)
        is_left = batch["completion_mask"][:, 1:].any(dim=1)
        if not is_left.all():
            example = examples[int(is_left.int().argmin()) % len(examples)]
            batch[NO_ANSWER_LEFT] = repr(text_of(example.get("prompt") or example["chosen"]).strip()[:_SHOWN])
        return batch
