"""Checks of token ids: of whole columns by Arrow, of single rows by their values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset


__all__ = ["check_ids", "check_list", "suspects"]

_LIMIT = 2**31  # above any vocabulary


def check_list(value: Any, name: str, where: str, expected: str) -> None:
    """Raises a `ValueError` if a value is not a list."""
    if value is None:
        raise ValueError(f"`{name}` in {where} is None. Fill it in, or drop such rows with `dataset.filter`.")
    if not isinstance(value, list):
        found = "text" if isinstance(value, str) else f"of type {type(value).__name__}"
        raise ValueError(f"`{name}` in {where} is {found}. Expected {expected}.")


def check_ids(value: Any, name: str, where: str) -> None:
    """
    Checks a list of token ids.

    Args:
        value (`Any`):
            A list of whole numbers of 0 or more.
        name (`str`):
            Its column, for the message.
        where (`str`):
            Its row, for the message.

    Raises:
        ValueError: If it is not such a list, or is empty.
    """
    check_list(value, name, where, "a list of token ids")
    if not value:
        raise ValueError(f"`{name}` in {where} is empty. Drop such rows with `dataset.filter`.")
    for place, token in enumerate(value):
        if type(token) is not int:
            raise ValueError(
                f"`{name}[{place}]` in {where} is {token!r}, of type {type(token).__name__}. Token ids are whole "
                "numbers: tokenize such rows again, or drop them with `dataset.filter`."
            )
        if not 0 <= token < _LIMIT:
            raise ValueError(
                f"`{name}[{place}]` in {where} is {token}, which is no token id. Labels of -100 belong into no column "
                "of ids: tokenize such rows again."
            )


def suspects(dataset: Dataset, columns: Sequence[str]) -> list[int]:
    """
    Numbers of the rows in which [`check_ids`] may find a problem. Arrow reads each column of token ids once.

    Args:
        dataset (`Dataset`):
            Rows.
        columns (`Sequence[str]`):
            Columns of lists of token ids.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from trl_dpo_ext.data.token_ids import suspects

    >>> suspects(Dataset.from_dict({"prompt_ids": [[1, 2], [], [3, -100], None]}), ["prompt_ids"])
    [1, 2, 3]

    ```
    """
    table = dataset.with_format("arrow")[:]
    found = np.zeros(len(dataset), dtype=bool)
    for name in columns:
        values = table[name].combine_chunks()
        is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
        if not is_list or not pa.types.is_integer(values.type.value_type):
            return list(range(len(dataset)))
        length = pc.fill_null(pc.list_value_length(values), 0)
        found |= pc.equal(length, 0).to_numpy(zero_copy_only=False)
        ids = pc.list_flatten(values)
        good = pc.fill_null(pc.and_(pc.greater_equal(ids, 0), pc.less(ids, _LIMIT)), False)
        parents = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
        found[parents[~good.to_numpy(zero_copy_only=False)]] = True
    return np.flatnonzero(found).tolist()
