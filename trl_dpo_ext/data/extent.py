"""Smallest and largest token id and longest row of a tokenized dataset."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset


__all__ = ["Extent", "extent_of"]

_BATCH = 10_000  # rows


class Extent(NamedTuple):
    """
    Smallest and largest token id and longest row of a dataset.

    Args:
        smallest_id, largest_id (`int`):
            Of all token ids.
        longest (`int`):
            Tokens of the longest prompt with a completion.
    """

    smallest_id: int
    largest_id: int
    longest: int

    def with_row(self, prompt_ids: Sequence[int], *completion_ids: Sequence[int]) -> "Extent":
        """Returns the extent with one more row. Without rows, all of it is 0."""
        ids = [self.smallest_id, self.largest_id] if self.longest else []
        ids += [token for part in (prompt_ids, *completion_ids) for token in part]
        longest = len(prompt_ids) + max(map(len, completion_ids))
        return Extent(min(ids), max(ids), max(self.longest, longest)) if ids else self


def extent_of(dataset: Dataset, prompts: str, completions: Sequence[str]) -> Extent:
    """
    Measures a tokenized dataset.

    Args:
        dataset (`Dataset`):
            Rows with token ids.
        prompts (`str`):
            Column of prompts: a list of ids a row.
        completions (`Sequence[str]`):
            Columns of completions: a list of ids a row, or a list of such lists.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from trl_dpo_ext.data.extent import extent_of

    >>> rows = Dataset.from_list([{"prompt_ids": [5, 6], "chosen_ids": [9], "rejected_ids": [1, 2, 3]}])
    >>> extent_of(rows, "prompt_ids", ["chosen_ids", "rejected_ids"])
    Extent(smallest_id=1, largest_id=9, longest=5)

    ```
    """
    smallest, largest, longest = 0, 0, 0
    columns = [prompts, *completions]
    found: list[tuple[int, int]] = []
    for table in dataset.select_columns(columns).with_format("arrow").iter(_BATCH):
        lengths = pc.list_value_length(_whole(table[prompts]))
        for name in columns:
            ids = _whole(table[name])
            if pa.types.is_nested(ids.type.value_type):
                of_each, row = pc.list_value_length(ids.flatten()), pc.list_parent_indices(ids)
                total = pc.add(lengths.take(row), of_each)
                ids = ids.flatten()
            else:
                total = lengths if name == prompts else pc.add(lengths, pc.list_value_length(ids))
            longest = max(longest, pc.max(total).as_py() or 0)
            bounds = pc.min_max(ids.flatten()).as_py()
            if bounds["min"] is not None:
                found.append((bounds["min"], bounds["max"]))
    if found:
        smallest, largest = min(low for low, _ in found), max(high for _, high in found)
    return Extent(smallest, largest, longest)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
