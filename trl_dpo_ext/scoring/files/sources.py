"""Rows from a file, a folder or the hub, in parts of a fixed size, each with the number that messages name it by."""

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError


__all__ = ["JsonLines", "Record", "RowSource", "Rows", "open_rows"]

_FILES = (".jsonl", ".json", ".parquet")


@dataclass
class Record:
    """
    One row of a source.

    Args:
        number (`int`):
            Its line, counted from 1, or its row, counted from 0: see [`RowSource`].
        row (`dict`):
            Its columns; empty where they cannot be read.
        problem (`str`, *optional*):
            Why they cannot be read.
        raw (`Any`):
            What the source holds: the text of a line, or the row itself.
    """

    number: int
    row: dict[str, Any]
    problem: str | None
    raw: Any


class RowSource:
    """
    Rows in parts of `rows_per_part`, of which any can be read without the others.

    Args:
        name (`str`):
            Name in messages.
        unit (`str`):
            What a [`Record`]'s number counts: `"line"` or `"row"`.
        num_rows (`int`):
            Rows.
        rows_per_part (`int`):
            Rows of every part but the last.
        identity (`str`):
            Hash of the content.
    """

    def __init__(self, name: str, unit: str, num_rows: int, rows_per_part: int, identity: str):
        if not num_rows:
            raise ValueError(f"{name} has no row.")
        self.name = name
        self.unit = unit
        self.num_rows = num_rows
        self.rows_per_part = rows_per_part
        self.identity = identity

    @property
    def num_parts(self) -> int:
        """Parts, at least one."""
        return -(-self.num_rows // self.rows_per_part)

    def size_of(self, part: int) -> int:
        """Rows of a part."""
        return min(self.rows_per_part, self.num_rows - part * self.rows_per_part)

    def read(self, part: int) -> Iterator[Record]:
        """The rows of a part."""
        raise NotImplementedError


class JsonLines(RowSource):
    """
    A file with one JSON object a line; empty lines are passed over.

    A line that is no JSON object is a [`Record`] with a problem. The file is read once for its hash and the places
    where parts begin, and never held in memory.

    Args:
        path (`Path`):
            File.
        rows_per_part (`int`):
            Rows of a part.

    Raises:
        ValueError: If it has no row.
    """

    def __init__(self, path: Path, rows_per_part: int):
        self._path = path
        self._starts: list[tuple[int, int]] = []  # of each part: place in bytes, and lines before it
        digest, num_rows, place = xxhash.xxh3_128(), 0, 0
        with path.open("rb") as file:
            for before, line in enumerate(file):
                digest.update(line)
                if line.strip():
                    if num_rows % rows_per_part == 0:
                        self._starts.append((place, before))
                    num_rows += 1
                place += len(line)
        super().__init__(path.name, "line", num_rows, rows_per_part, digest.hexdigest())

    def read(self, part: int) -> Iterator[Record]:
        """The rows of a part."""
        place, before = self._starts[part]
        left = self.size_of(part)
        with self._path.open("rb") as file:
            file.seek(place)
            for number, line in enumerate(file, start=before + 1):
                if line.strip():
                    yield _parse(line, number)
                    left -= 1
                if not left:
                    return


class Rows(RowSource):
    """
    Rows in memory, or in the memory map of a data set.

    Args:
        rows (`Dataset` or `Sequence`):
            Rows; an entry of a sequence that is no dict is a [`Record`] with a problem.
        name (`str`):
            Name in messages.
        rows_per_part (`int`):
            Rows of a part.

    Raises:
        ValueError: If there is no row.
    """

    def __init__(self, rows: Dataset | Sequence[Any], name: str, rows_per_part: int):
        digest = xxhash.xxh3_128()
        if isinstance(rows, Dataset):
            rows = rows.with_format(None)
            digest.update(str(rows.features).encode())
            for table in rows.with_format("arrow").iter(batch_size=1000):
                for batch in table.to_batches():
                    digest.update(batch.serialize())
        else:
            for row in rows:
                digest.update(json.dumps(row).encode())
        self.rows = rows
        super().__init__(name, "row", len(rows), rows_per_part, digest.hexdigest())

    def read(self, part: int) -> Iterator[Record]:
        """The rows of a part."""
        start = part * self.rows_per_part
        for number in range(start, start + self.size_of(part)):
            row = self.rows[number]
            problem = None if isinstance(row, dict) else _not_an_object(row)
            yield Record(number, {} if problem else row, problem, row)


def open_rows(
    name: str, *, rows_per_part: int, split: str | None = None, dataset_config: str | None = None
) -> RowSource:
    """
    Opens rows by the name that a user gives them.

    Args:
        name (`str`):
            A `.jsonl`, `.json` (JSON lines, or one array) or `.parquet` file, a folder that `Dataset.save_to_disk`
            wrote, or the name of a data set on the hub.
        rows_per_part (`int`):
            Rows of a part.
        split (`str`, *optional*):
            Split of a data set that has several; `"train"` by default.
        dataset_config (`str`, *optional*):
            Configuration of a data set on the hub.

    Returns:
        [`RowSource`]

    Raises:
        ValueError: If there is no such thing, it cannot be read, or has no row, or an option has no effect on it.
    """
    path = Path(name)
    is_folder = path.is_dir()
    has_splits = (path / "dataset_dict.json").is_file() if is_folder else not _is_file(path)
    if dataset_config is not None and (is_folder or not has_splits):
        raise ValueError(f"`dataset_config={dataset_config!r}` has no effect on {name}. Leave it out.")
    if split is not None and not has_splits:
        raise ValueError(f"`split={split!r}` has no effect: {name} has no splits. Leave it out.")
    if is_folder:
        return Rows(_from_folder(path, split or "train"), name, rows_per_part)
    if not _is_file(path):
        try:
            rows = load_dataset(name, dataset_config)
        except OSError as error:
            raise ValueError(f"{name} is no file and no folder, and as the name of a data set: {error}") from error
        return Rows(_split_of(rows, name, split or "train"), name, rows_per_part)
    if path.suffix == ".parquet":
        try:
            rows = load_dataset("parquet", data_files=name, split="train")
        except (DatasetsError, ValueError) as error:  # Arrow's are ValueErrors
            raise ValueError(f"{path} cannot be read: {error.__cause__ or error}") from error
        return Rows(rows, path.name, rows_per_part)
    return _open_json(path, rows_per_part)


def _is_file(path: Path) -> bool:
    if path.exists():
        if path.suffix not in _FILES:
            raise ValueError(f"{path} is not a {', '.join(_FILES[:-1])} or {_FILES[-1]} file.")
        return True
    if path.suffix in _FILES or path.is_absolute() or len(path.parts) > 2:
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        similar = difflib.get_close_matches(path.name, beside, n=1)
        hint = f" Did you mean {path.parent / similar[0]}?" if similar else ""
        raise ValueError(f"{path} does not exist.{hint}")
    return False


def _from_folder(path: Path, split: str) -> Dataset:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        files = sorted(other.name for other in path.iterdir() if other.suffix in (".jsonl", ".parquet"))
        hint = f" Pass one of the files in it: {', '.join(files[:5])}." if files else ""
        raise ValueError(f"{path} is a folder that `Dataset.save_to_disk` did not write.{hint}")
    rows = load_from_disk(path)
    return _split_of(rows, str(path), split) if isinstance(rows, DatasetDict) else rows


def _split_of(rows: DatasetDict, name: str, split: str) -> Dataset:
    if split not in rows:
        raise ValueError(f"{name} has no split `{split}`, only {', '.join(rows)}. Choose one with `split`.")
    return rows[split]


def _open_json(path: Path, rows_per_part: int) -> RowSource:
    with path.open("rb") as file:
        first = next((line.lstrip(b"\xef\xbb\xbf \t\r\n") for line in file if line.strip()), b"")
    if path.suffix == ".jsonl" or not first.startswith(b"["):
        return JsonLines(path, rows_per_part)
    try:
        return Rows(json.loads(path.read_text(encoding="utf-8-sig")), path.name, rows_per_part)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} begins like a JSON array, and is not one: {error}.") from error


def _parse(line: bytes, number: int) -> Record:
    raw = line.decode("utf-8-sig", errors="backslashreplace").rstrip("\r\n")
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: {error.reason} at byte {error.start}"
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} at column {error.colno}"
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of too many digits
        problem = f"not JSON that can be read: {error}"
    else:
        if isinstance(row, dict):
            return Record(number, row, None, raw)
        problem = _not_an_object(row)
    return Record(number, {}, problem, raw)


def _not_an_object(row: Any) -> str:
    return f"a JSON value of type {type(row).__name__}; expected an object with the row's columns"
