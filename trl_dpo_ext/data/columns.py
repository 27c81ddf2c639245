"""Columns of a dataset: names, types, formats, and images."""

import mimetypes
import os.path
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, IterableDataset, Json
from PIL.Image import Image as Picture
from transformers.utils import logging


__all__ = [
    "IMAGE_COLUMNS",
    "columns_of",
    "columns_of_rows",
    "holds_images",
    "is_image",
    "opened",
    "plain",
    "type_of_both",
    "typed",
]

IMAGE_COLUMNS = ("image", "images")

logger = logging.get_logger(__name__)


def columns_of(dataset: Dataset | IterableDataset) -> list[str]:
    """Column names, looked up in the first row where a streaming dataset does not know them."""
    return dataset.column_names or list(next(iter(dataset), {}))


def columns_of_rows(dataset: Any, dataset_name: str) -> list[str]:
    """
    Column names of a dataset that has at least one row.

    Raises:
        TypeError: If it is not a dataset.
        ValueError: If it has no rows.
    """
    if not isinstance(dataset, (Dataset, IterableDataset)):
        hint = " Pass one of its splits." if isinstance(dataset, dict) else ""
        raise TypeError(
            f"The {dataset_name} dataset is a `{type(dataset).__name__}`; expected a `Dataset` or an "
            f"`IterableDataset`.{hint}"
        )
    if next(iter(dataset), None) is None:
        raise ValueError(f"The {dataset_name} dataset has no rows.")
    return columns_of(dataset)


def type_of_both(one: Any, other: Any) -> Any:
    """
    The type of a column that holds the values of two columns. If they differ it is JSON, which holds messages with any
    keys.
    """
    return one if one == other else Json()


def typed(dataset: Dataset | IterableDataset, made: Mapping[str, Any], removed: Sequence[str] = ()) -> dict[str, Any]:
    """
    Arguments of `map` for a function that makes columns. They give the types of these columns, so that `datasets` does
    not infer them from a column of the same name or from the first thousand rows. A stream has no types to keep.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows that are mapped.
        made (`Mapping[str, Any]`):
            Types of the columns that are made.
        removed (`Sequence[str]`, *optional*):
            Columns to remove, if the dataset has them.
    """
    names = [name for name in columns_of(dataset) if name in removed]
    if isinstance(dataset, IterableDataset):
        return {"remove_columns": names}
    kept = {name: of_column for name, of_column in dataset.features.items() if name not in names}
    return {"remove_columns": names, "features": Features({**kept, **made})}


def plain(dataset: Any, dataset_name: str) -> Any:
    """
    A dataset without a format, whose rows are Python values.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows, perhaps with a format, such as that of `with_format("torch")`. The columns that a format leaves out
            are left out. Anything else is returned as it is.
        dataset_name (`str`):
            Name used in messages.

    Raises:
        ValueError: If a transform makes the rows when they are read (`with_transform`).
    """
    if isinstance(dataset, IterableDataset):
        return dataset.with_format(None)
    if not isinstance(dataset, Dataset):
        return dataset
    given = dataset.format
    if given["type"] == "custom":
        raise ValueError(
            f"The {dataset_name} dataset makes its rows with a transform (`with_transform`) each time they are read, "
            "and they are prepared once. Apply it with `dataset.map`, and take it off with "
            "`dataset.with_format(None)`."
        )
    if given["type"] is None and given["columns"] == dataset.column_names:
        return dataset
    columns = dataset.column_names if given["output_all_columns"] else given["columns"]
    dataset = dataset.with_format(None)
    return dataset if columns == dataset.column_names else dataset.select_columns(columns)


def opened(dataset: Any, dataset_name: str) -> Any:
    """Same as [`plain`], without the columns `image` and `images` if they hold no image: TRL goes by their names."""
    dataset = plain(dataset, dataset_name)
    if not isinstance(dataset, (Dataset, IterableDataset)):
        return dataset
    images = set(holds_images(dataset))
    empty = [name for name in columns_of(dataset) if name in IMAGE_COLUMNS and name not in images]
    if not empty:
        return dataset
    logger.warning(f"The column `{empty[0]}` of the {dataset_name} dataset holds no image and is not used.")
    return dataset.remove_columns(empty)


def holds_images(dataset: Dataset | IterableDataset) -> list[str]:
    """Those of the columns `image` and `images` that hold images; a stream is judged by its type and first row."""
    names = [name for name in columns_of(dataset) if name in IMAGE_COLUMNS]
    if not names:
        return []
    declared = {name for name in names if "Image(" in repr((dataset.features or {}).get(name))}
    if isinstance(dataset, IterableDataset):
        first: dict[str, Any] = next(iter(dataset), {})
        return [name for name in names if name in declared or is_image(first.get(name))]
    found = []
    for name in names:
        # As stored, so that nothing is decoded
        batches = dataset.select_columns(name).with_format("arrow").iter(batch_size=100)
        if any(is_image(value) for batch in batches for value in batch[name].to_pylist()):
            found.append(name)
    return found


def is_image(value: Any) -> bool:
    """Whether a value is an image, the bytes, name of a file or address of one, or a list with one."""
    if isinstance(value, list):
        return any(map(is_image, value))
    if isinstance(value, Mapping):
        return bool(value.get("bytes") or value.get("path"))
    if isinstance(value, str):
        if value.startswith(("http://", "https://", "data:image/")) or os.path.isfile(value):
            return True
        return (mimetypes.guess_type(value)[0] or "").startswith("image/")  # a file that lies elsewhere
    return isinstance(value, Picture)
