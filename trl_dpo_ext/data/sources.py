"""Rows by the name that a user gives them: a file, a folder, or a data set on the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, get_dataset_config_names, get_dataset_default_config_name, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HFValidationError

from trl_dpo_ext.data.spelling import did_you_mean_path


__all__ = ["check_no_config", "load_splits", "split_of"]

_FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}


def load_splits(
    name: str, *, option: str, dataset_config: str | None = None, streaming: bool = False
) -> Mapping[str, Any]:
    """
    Loads all splits of the rows that a user names.

    Args:
        name (`str`):
            A `.jsonl`, `.json`, `.parquet`, `.csv` or `.arrow` file, a folder of such files or of `save_to_disk`, or
            the name of a data set on the hub.
        option (`str`):
            The command's option for the name, for messages.
        dataset_config (`str`, *optional*):
            Configuration, of a data set that has several.
        streaming (`bool`, *optional*, defaults to `False`):
            Read rows only when they are used.

    Returns:
        `Mapping[str, Dataset]`, with `streaming` of `IterableDataset`: rows by split, `"train"` where there is one.

    Raises:
        ValueError: If there is no such thing, or it cannot be read.
    """
    path = Path(name)
    is_saved = any((path / file).is_file() for file in ("state.json", "dataset_dict.json"))
    kind = None if path.is_dir() else _FILES.get(path.suffix)
    if is_saved or kind is not None:
        check_no_config(name, dataset_config)
    elif path.is_file():
        *most, last = _FILES
        raise ValueError(f"`{option}`: {name} is not a {', '.join(most)} or {last} file.")
    try:
        if is_saved:
            saved = load_from_disk(name)
            splits = {"train": saved} if isinstance(saved, Dataset) else saved
            return {split: rows.to_iterable_dataset() for split, rows in splits.items()} if streaming else splits
        if kind is not None:
            return load_dataset(kind, data_files=name, streaming=streaming)
        return _load_configuration(name, dataset_config, streaming)
    except (OSError, ValueError, DatasetsError, StopIteration) as error:
        raise ValueError(f"`{option}`: {name} {_problem(path, error)}") from error


def split_of(splits: Mapping[str, Any], name: str, split: str, *, option: str, fix: str = "") -> Any:
    """
    One split of the rows that a user names.

    Args:
        splits (`Mapping`):
            Rows by split.
        name (`str`):
            Name of the rows, for messages.
        split (`str`):
            Split.
        option (`str`):
            The command's option for the split, for messages.
        fix (`str`, *optional*):
            What to do where there is no such split, for messages.

    Returns:
        The rows of the split.

    Raises:
        ValueError: If there is no such split, with those that there are.
    """
    if split not in splits:
        advice = f" {fix}" if fix else ""
        raise ValueError(f"`{option}`: {name} has no split `{split}`, only {', '.join(splits)}.{advice}")
    return splits[split]


def check_no_config(name: str, dataset_config: str | None) -> None:
    """
    Checks that rows which cannot have configurations are named without one.

    Raises:
        ValueError: If there is one.
    """
    if dataset_config is not None:
        raise ValueError(f"`dataset_config={dataset_config!r}` has no effect on {name}. Leave it out.")


def _load_configuration(name: str, dataset_config: str | None, streaming: bool) -> Mapping[str, Any]:
    try:
        return load_dataset(name, dataset_config, streaming=streaming)
    except ValueError:
        there = get_dataset_config_names(name)
        if (dataset_config or get_dataset_default_config_name(name)) in there:
            raise
        # That of `datasets` explains `load_dataset`
        raise ValueError(f"`dataset_config={dataset_config!r}` is none of its {', '.join(there)}.") from None


def _problem(path: Path, error: Exception) -> str:
    if not path.exists() and isinstance(error, (OSError, HFValidationError)):
        hint = did_you_mean_path(path)
        is_path = path.suffix in _FILES or path.is_absolute() or len(path.parts) > 2
        if is_path and isinstance(error, FileNotFoundError):
            return f"does not exist.{hint}"
        return f"is no file and no folder, and as the name of a data set: {str(error).rstrip('.')}.{hint}"
    if isinstance(error, StopIteration):  # from the first look into an empty file
        return "has no row."
    return f"cannot be read: {error.__cause__ or error}"
