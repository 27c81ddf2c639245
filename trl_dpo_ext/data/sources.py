"""Loading of rows from a file, a folder, or a dataset on the hub."""

import glob
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    IterableDataset,
    Value,
    get_dataset_config_names,
    get_dataset_default_config_name,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HFValidationError

from trl_dpo_ext.data.json_files import (
    check_json,
    compression,
    is_array,
    json_problem,
    open_bytes,
    parse_array,
    parse_object,
)
from trl_dpo_ext.spelling import did_you_mean_path


__all__ = ["check_no_config", "check_path", "is_json", "load_splits", "split_of"]

_FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}
_PACKED = (".gz", ".bz2", ".xz", ".zst")

# Of text in a CSV file pandas would make numbers, and of some nothing ("NA", "None")
_AS_TEXT: dict[str, Any] = {
    "converters": dict.fromkeys(("prompt", "chosen", "rejected", "completion"), str),
    "keep_default_na": False,
    "na_values": [""],
}


def load_splits(
    name: str, *, option: str, dataset_config: str | None = None, streaming: bool = False
) -> Mapping[str, Any]:
    """
    Loads all splits of a file, a folder, or a dataset on the hub.

    Text stays text: a date in quotes, or an answer `42` or `None` in a column `prompt`, `chosen`, `rejected` or
    `completion` of a `.csv` file.

    Args:
        name (`str`):
            A `.jsonl`, `.json`, `.parquet`, `.csv` or `.arrow` file (JSON and CSV also compressed: `.gz`, `.bz2`,
            `.xz`, `.zst`), a folder of such files or of `save_to_disk`, or the name of a dataset on the hub.
        option (`str`):
            The command's option for the name, for messages.
        dataset_config (`str`, *optional*):
            Configuration, of a dataset that has several.
        streaming (`bool`, *optional*, defaults to `False`):
            Read rows only when they are used.

    Returns:
        `Mapping[str, Dataset]`, with `streaming` of `IterableDataset`: rows by split, `"train"` where there is one.

    Raises:
        ValueError: If it does not exist or cannot be read.
    """
    path = Path(name)
    check_path(name, option=option)
    is_saved = any((path / file).is_file() for file in ("state.json", "dataset_dict.json"))
    kind = None if path.is_dir() else _kind_of(path)
    if is_saved or kind is not None:
        check_no_config(name, dataset_config)
    elif path.is_file():
        *most, last = _FILES
        raise ValueError(f"`{option}`: {name} is not a {', '.join(most)} or {last} file.")
    json_files = [] if is_saved else _json_files(path)
    for file in json_files:
        try:
            check_json(file)
        except ValueError as error:
            where = "" if file == path else f"{file}: "
            raise ValueError(f"`{option}`: {name} cannot be read: {where}{error}") from error
    try:
        if is_saved:
            saved = _load_saved(path)
            splits = {"train": saved} if isinstance(saved, Dataset) else saved
            return {split: rows.to_iterable_dataset() for split, rows in splits.items()} if streaming else splits
        if kind is None:
            splits = _load_configuration(name, dataset_config, streaming)
        else:
            # Text that looks like a pattern is a name where there is such a file
            pattern = glob.escape(name) if path.is_file() else name
            options = _AS_TEXT if kind == "csv" else {}
            splits = load_dataset(kind, data_files=pattern, streaming=streaming, **options)
        if not json_files:
            return splits
        return {
            split: _with_dates_as_text(rows, partial(_files_of, name, split, path, json_files), streaming)
            for split, rows in splits.items()
        }
    except (OSError, ValueError, DatasetsError, StopIteration, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"`{option}`: {name} {_problem(path, error)}") from error


def check_path(name: str, *, option: str) -> None:
    """
    Checks that a path can be read.

    Raises:
        ValueError: If it is a link to nothing, or a file whose name `datasets` cannot read or that says another
            compression than it has.
    """
    path = Path(name)
    if path.is_symlink() and not path.exists():
        raise ValueError(f"`{option}`: {name} is a link to {path.readlink()}, which does not exist.")
    if path.is_file() and path.suffix in _PACKED and compression(path) != path.suffix:
        raise ValueError(f"`{option}`: {name} is not compressed as its name says. Rename it.")
    if "::" in name and path.exists():
        raise ValueError(f"`{option}`: {name} has `::` in its name, which `datasets` cannot read. Rename it.")


def is_json(path: Path) -> bool:
    """Whether a file's name is that of JSON, compressed or not."""
    return _kind_of(path) == "json"


def _kind_of(path: Path) -> str | None:
    suffix = path.suffix
    if suffix in _PACKED:
        suffix = path.with_suffix("").suffix
        return _FILES.get(suffix) if suffix in (".jsonl", ".json", ".csv") else None
    return _FILES.get(suffix)


def _json_files(path: Path) -> list[Path]:
    # The JSON files that a name stands for
    if path.is_dir():
        found: Iterable[Path] = path.rglob("*")
    elif path.exists() or not glob.has_magic(str(path)):
        found = [path]
    else:
        found = map(Path, glob.glob(str(path), recursive=True))
    hidden = (".", "__")
    return [
        file
        for file in sorted(found)
        if is_json(file)
        and file.is_file()
        and not (path.is_dir() and any(part.startswith(hidden) for part in file.relative_to(path).parts))
    ]


def _load_saved(path: Path) -> Any:
    # What `load_from_disk` takes on trust
    if (path / "dataset_dict.json").is_file():
        splits = _read_object(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not all(_is_inside(split) for split in splits):
            raise ValueError(f"{path / 'dataset_dict.json'} does not list its splits. Save the dataset again.")
        folders = [path / split for split in splits]
    else:
        folders = [path]
    for folder in folders:
        state, info = folder / "state.json", folder / "dataset_info.json"
        files = _read_object(state).get("_data_files")
        _read_object(info)
        names = [file.get("filename") if isinstance(file, dict) else None for file in files or [None]]
        if not isinstance(files, list) or not all(map(_is_inside, names)):
            raise ValueError(f"{state} does not list files of its own folder. Save the dataset again.")
    try:
        saved = load_from_disk(str(path))
        for rows in [saved] if isinstance(saved, Dataset) else saved.values():
            rows.data.table.validate(full=True)  # damage inside would end the process
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(
            f"it is not as `save_to_disk` writes one ({type(error).__name__}: {error}). Save the dataset again."
        ) from error
    return saved


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing. Save the dataset again.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Save the dataset again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object. Save the dataset again.")
    return found


def _is_inside(name: Any) -> bool:
    return isinstance(name, str) and name == Path(name).name and name not in ("", "..")


def _files_of(name: str, split: str, path: Path, json_files: list[Path]) -> list[Path]:
    # The files of a split; only `datasets` knows how those of a folder are divided
    if not path.is_dir():
        return json_files
    return [Path(file) for file in load_dataset_builder(name).config.data_files[split]]


def _with_dates_as_text(rows: Any, files_of: Callable[[], list[Path]], streaming: bool) -> Any:
    # JSON has no dates: pyarrow makes them of text, and cannot give the text back
    features = rows.features
    if features is None:
        features = Dataset.from_list([next(iter(rows))]).features
    text = _dates_as_text(features)
    if text == features:
        return rows
    paths = [path.resolve() for path in files_of()]
    if not all(map(is_json, paths)):
        return rows
    stats = [path.stat() for path in paths]
    version = [f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats]  # of the files, for the cache of `datasets`
    make = IterableDataset.from_generator if streaming else Dataset.from_generator
    # In a tuple: `datasets` would divide a list among processes
    return make(_rows_of, features=text, gen_kwargs={"paths": tuple(map(str, paths)), "version": tuple(version)})


def _rows_of(paths: tuple[str, ...], version: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for path in map(Path, paths):
        if is_array(path):
            yield from parse_array(path)
            continue
        with open_bytes(path) as file:
            yield from (parse_object(line) for line in file if line.strip())


def _dates_as_text(feature: Any) -> Any:
    if isinstance(feature, dict):
        return type(feature)({name: _dates_as_text(inner) for name, inner in feature.items()})
    if isinstance(feature, Value):
        return Value("string") if feature.dtype.startswith(("timestamp", "date", "time")) else feature
    if hasattr(feature, "feature"):
        return type(feature)(_dates_as_text(feature.feature))
    return feature


def split_of(splits: Mapping[str, Any], name: str, split: str, *, option: str, fix: str = "") -> Any:
    """
    One split of loaded rows.

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
    Checks that no configuration is given for rows that cannot have one.

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
        return f"is no file and no folder, and as the name of a dataset: {str(error).rstrip('.')}.{hint}"
    if isinstance(error, StopIteration) or "corresponds to no data" in str(error):  # no byte, or no value
        return "has no rows."
    if path.is_file() and is_json(path) and (problem := json_problem(path)):
        return f"cannot be read: {problem}."
    cause = error.__cause__ if isinstance(error, DatasetsError) else None
    return f"cannot be read: {cause or error}"
