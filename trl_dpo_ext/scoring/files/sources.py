"""Rows from a file, a folder or the hub, in parts of a fixed size, each with the number that messages name it by."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset

from trl_dpo_ext.data.sources import check_no_config, load_splits, split_of


__all__ = ["JsonLines", "Record", "RowSource", "Rows", "open_rows"]


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


def open_rows(name: str, *, rows_per_part: int, split: str = "train", dataset_config: str | None = None) -> RowSource:
    """
    Opens rows by the name that a user gives them, files of JSON line by line.

    Args:
        name (`str`):
            What [`~trl_dpo_ext.data.sources.load_splits`] takes; a `.json` file holds JSON lines, or one array.
        rows_per_part (`int`):
            Rows of a part.
        split (`str`, *optional*, defaults to `"train"`):
            Split.
        dataset_config (`str`, *optional*):
            Configuration, of a data set that has several.

    Returns:
        [`RowSource`]

    Raises:
        ValueError: If there is no such thing, it cannot be read, or has no row, or an option has no effect on it.
    """
    path = Path(name)
    if path.suffix in (".jsonl", ".json") and path.is_file():
        check_no_config(name, dataset_config)
        return _open_json(split_of({"train": path}, name, split, option="split"), rows_per_part)
    splits = load_splits(name, option="ROWS", dataset_config=dataset_config)
    rows = split_of(splits, name, split, option="split")
    return Rows(rows, path.name if path.is_file() else name, rows_per_part)


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
