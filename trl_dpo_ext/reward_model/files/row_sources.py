"""Indexed rows of a file, a folder or the hub, in parts of a fixed size."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset

from trl_dpo_ext.data.json_files import compression, is_array, not_an_object, open_bytes, parse_array, parse_object
from trl_dpo_ext.data.sources import check_no_config, check_path, is_json, load_splits, split_of


__all__ = ["JsonLines", "Record", "RowSource", "Rows", "open_rows"]


@dataclass
class Record:
    """
    A row of a source.

    Args:
        number (`int`):
            Index of the row, from 0.
        row (`dict`):
            Columns of the row, or empty if they cannot be read.
        problem (`str`, *optional*):
            Reason why they cannot be read.
        raw (`Any`):
            Text of the line in the source, or the row itself.
        line (`int`, *optional*):
            Line in a JSON Lines file, from 1, counting empty lines.
    """

    number: int
    row: dict[str, Any]
    problem: str | None
    raw: Any
    line: int | None = None

    @property
    def where(self) -> str:
        """Name of the row in messages."""
        return f"row {self.number}" + (f" (line {self.line})" if self.line else "")


class RowSource:
    """
    Rows in parts of `rows_per_part`, which can be read independently.

    Args:
        name (`str`):
            Name in messages.
        num_rows (`int`):
            Number of rows.
        rows_per_part (`int`):
            Number of rows of every part except the last.
        identity (`str`):
            Hash of the content.
    """

    def __init__(self, name: str, num_rows: int, rows_per_part: int, identity: str):
        if not num_rows:
            raise ValueError(f"{name} has no rows.")
        self.name = name
        self.num_rows = num_rows
        self.rows_per_part = rows_per_part
        self.identity = identity

    @property
    def num_parts(self) -> int:
        """Number of parts, at least one."""
        return -(-self.num_rows // self.rows_per_part)

    def size_of(self, part: int) -> int:
        """Number of rows of a part."""
        return min(self.rows_per_part, self.num_rows - part * self.rows_per_part)

    def numbers_of(self, part: int) -> range:
        """Indices of the rows of a part."""
        start = part * self.rows_per_part
        return range(start, start + self.size_of(part))

    def read(self, part: int) -> Iterator[Record]:
        """Yields the rows of a part."""
        raise NotImplementedError


class JsonLines(RowSource):
    """
    Rows of a JSON Lines file. Empty lines are skipped.

    A line that is not a JSON object gives a [`Record`] with a problem. The file is read once for its hash and the
    offsets of its parts, and is not held in memory.

    Args:
        path (`Path`):
            File.
        rows_per_part (`int`):
            Number of rows of a part.

    Raises:
        ValueError: If the file has no rows.
    """

    def __init__(self, path: Path, rows_per_part: int):
        self._path = path
        self._starts: list[tuple[int, int]] = []  # of each part: offset in bytes, and lines before it
        digest, num_rows, place = xxhash.xxh3_128(), 0, 0
        # Parts are read from their offsets, so a compressed file is unpacked first
        self._plain = tempfile.NamedTemporaryFile() if compression(path) else None  # noqa: SIM115 - lives as long
        if self._plain is not None:
            with open_bytes(path) as packed:
                shutil.copyfileobj(packed, self._plain)
            self._plain.flush()
            self._path = Path(self._plain.name)
        with self._path.open("rb") as file:
            for before, line in enumerate(file):
                digest.update(line)
                if line.strip():
                    if num_rows % rows_per_part == 0:
                        self._starts.append((place, before))
                    num_rows += 1
                place += len(line)
        super().__init__(path.name, num_rows, rows_per_part, digest.hexdigest())

    def read(self, part: int) -> Iterator[Record]:
        """Yields the rows of a part."""
        place, before = self._starts[part]
        numbers = iter(self.numbers_of(part))
        left = self.size_of(part)
        with self._path.open("rb") as file:
            file.seek(place)
            for line_number, line in enumerate(file, start=before + 1):
                if line.strip():
                    yield _record(line, next(numbers), line_number)
                    left -= 1
                if not left:
                    return


class Rows(RowSource):
    """
    Rows in memory or of a memory-mapped dataset.

    Args:
        rows (`Dataset` or `Sequence`):
            Rows. An entry of a sequence that is not a dict gives a [`Record`] with a problem.
        name (`str`):
            Name in messages.
        rows_per_part (`int`):
            Number of rows of a part.

    Raises:
        ValueError: If there are no rows.
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
        super().__init__(name, len(rows), rows_per_part, digest.hexdigest())

    def read(self, part: int) -> Iterator[Record]:
        """Yields the rows of a part."""
        for number in self.numbers_of(part):
            row = self.rows[number]
            problem = None if isinstance(row, dict) else not_an_object(row)
            yield Record(number, {} if problem else row, problem, row)


def open_rows(name: str, *, rows_per_part: int, split: str = "train", dataset_config: str | None = None) -> RowSource:
    """
    Opens rows by the name that a user passes. JSON files are read line by line.

    Args:
        name (`str`):
            Name accepted by [`~trl_dpo_ext.data.sources.load_splits`]. A `.json` file has JSON lines or one array.
        rows_per_part (`int`):
            Number of rows of a part.
        split (`str`, *optional*, defaults to `"train"`):
            Split.
        dataset_config (`str`, *optional*):
            Configuration of a dataset with several.

    Returns:
        [`RowSource`]

    Raises:
        ValueError: If the source does not exist, cannot be read or has no rows, or an option has no effect.
    """
    path = Path(name)
    check_path(name, option="ROWS")
    if is_json(path) and path.is_file():
        check_no_config(name, dataset_config)
        path = split_of({"train": path}, name, split, option="split")
        if ".jsonl" not in path.suffixes and is_array(path):
            return Rows(parse_array(path), path.name, rows_per_part)
        return JsonLines(path, rows_per_part)
    splits = load_splits(name, option="ROWS", dataset_config=dataset_config)
    rows = split_of(splits, name, split, option="split")
    return Rows(rows, path.name if path.is_file() else name, rows_per_part)


def _record(line: bytes, number: int, line_number: int) -> Record:
    raw = line.decode("utf-8-sig", errors="backslashreplace").rstrip("\r\n")
    try:
        return Record(number, parse_object(line.rstrip()), None, raw, line_number)
    except ValueError as error:
        return Record(number, {}, str(error), raw, line_number)
