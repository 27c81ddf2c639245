"""Lengths of rows, for samplers that group rows of similar length."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset


__all__ = ["add_lengths"]


def add_lengths(dataset: Dataset, column: str, token_columns: Sequence[str]) -> Dataset:
    """
    Adds the number of tokens of each row: its prompt once, and all its completions.

    Args:
        dataset (`Dataset`):
            Tokenized rows.
        column (`str`):
            Name of the new column. One that exists already is kept.
        token_columns (`Sequence[str]`):
            Columns of token ids; lists of them, such as completions, count in full.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from trl_dpo_ext.data.lengths import add_lengths

    >>> rows = Dataset.from_list([{"prompt_ids": [1, 2], "completion_ids": [[3], [4, 5]]}])
    >>> add_lengths(rows, "length", ("prompt_ids", "completion_ids", "ranks"))["length"][:]
    [5]

    ```
    """
    if column in dataset.column_names:
        return dataset
    table = dataset.with_format("arrow")[:]
    tokens = [_tokens(table[name].combine_chunks()) for name in token_columns if name.endswith("_ids")]
    return dataset.add_column(column, np.sum(tokens, axis=0).tolist())


def _tokens(values: pa.ListArray) -> np.ndarray:
    if pa.types.is_list(values.type.value_type) or pa.types.is_large_list(values.type.value_type):
        inner = pc.list_value_length(pc.list_flatten(values)).to_numpy(zero_copy_only=False)
        rows = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
        return np.bincount(rows, weights=inner, minlength=len(values)).astype(np.int64)
    return pc.list_value_length(values).to_numpy(zero_copy_only=False).astype(np.int64)
