"""Checks and parsing of JSON files. Errors name the line."""

import bz2
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


__all__ = [
    "check_json",
    "compression",
    "is_array",
    "json_problem",
    "not_an_object",
    "open_bytes",
    "parse_array",
    "parse_object",
]

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_NEXT_OBJECT = re.compile(rb"\}\s*\{")  # or text that looks like it

# By the first bytes, as `datasets` finds them, and not by the name
_STARTS = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}


def compression(path: Path) -> str | None:
    """The suffix of the compression that a file has, as [`open_bytes`] undoes it."""
    with path.open("rb") as file:
        start = file.read(6)
    return next((suffix for suffix, magic in _STARTS.items() if start.startswith(magic)), None)


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """
    Opens a file, decompressed where gzip, bzip2, xz or Zstandard compressed it.

    Raises:
        ValueError: If it is damaged, or reading it needs a package that is not there.
    """
    packed = compression(path)
    errors: tuple[type[Exception], ...] = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
    file: Any
    if packed == ".gz":
        file = gzip.open(path)
    elif packed == ".bz2":
        file = bz2.open(path)
        errors = (EOFError, OSError)
    elif packed == ".xz":
        file = lzma.open(path)
    elif packed == ".zst":
        try:
            import zstandard
        except ModuleNotFoundError:
            raise ValueError(f"{path} is compressed by Zstandard. Run `pip install zstandard`.") from None
        file, errors = zstandard.open(path), (zstandard.ZstdError,)
    else:
        file = path.open("rb")
    with file:
        try:
            yield file
        except errors as error:
            raise ValueError(f"{path} is compressed, and damaged: {error}.") from error


def is_array(path: Path) -> bool:
    """Whether a file begins like a JSON array."""
    with open_bytes(path) as file:
        return next((line for line in _text_lines(file) if line), b"").startswith(b"[")


def parse_array(path: Path) -> list[Any]:
    """
    The entries of a file that holds one JSON array.

    Raises:
        ValueError: If it is not one.
    """
    with open_bytes(path) as file:
        text = file.read()
    try:
        rows = _parse(text)
    except ValueError as error:
        problem = str(error).removeprefix("not JSON: ")
        raise ValueError(f"{path} begins like a JSON array, and is not one: {problem}.") from error
    assert isinstance(rows, list)
    return rows


def parse_object(line: bytes) -> dict[str, Any]:
    """
    A line of a JSON Lines file.

    Raises:
        ValueError: If it is no JSON object with each name once.
    """
    row = _parse(line, in_line=True)
    if not isinstance(row, dict):
        raise ValueError(not_an_object(row))
    return row


def not_an_object(value: Any) -> str:
    """What is wrong with an entry that is no row."""
    return f"a JSON value of type {type(value).__name__}; expected an object with the row's columns"


def check_json(path: Path) -> None:
    """
    Checks that all rows of a JSON file are objects and UTF-8, by a look at the first character of every line.

    pyarrow reads a `null` between rows as a row, and one before them is a segmentation fault (measured with 24.0).

    Raises:
        ValueError: If not, with the line, or the entry of an array.
    """
    if is_array(path):
        for number, row in enumerate(parse_array(path)):
            if not isinstance(row, dict):
                raise ValueError(f"row {number} is {not_an_object(row)}.")
        return
    by_line = None  # else one object goes over several lines
    with open_bytes(path) as file:
        for number, line in enumerate(_text_lines(file), start=1):
            if not line:
                continue
            if by_line is None:
                by_line = not line.startswith(b"{") or _is_object(line) or _holds_several(line)
            if by_line and not line.startswith(b"{"):
                raise ValueError(f"line {number} is {_problem_of(line)}.")
            if by_line and _NEXT_OBJECT.search(line) and _holds_several(line):
                raise ValueError(f"line {number} holds several objects. End each by a line feed.")
            if not line.isascii():
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    raise ValueError(f"line {number} is {_not_utf8(error)}.") from error
    if by_line is False:
        with open_bytes(path) as file:
            _check_objects(file.read().removeprefix(_BOM).decode())


def json_problem(path: Path) -> str | None:
    """What is wrong with the first of a file's lines that is no row, or none like those before, with its number."""
    if is_array(path):
        return None
    kinds: dict[str, tuple[str, int]] = {}
    with open_bytes(path) as file:
        for number, line in enumerate(_text_lines(file), start=1):
            if not line:
                continue
            try:
                row = parse_object(line)
            except ValueError as error:
                return f"line {number} is {error}"
            for name, value in row.items():
                if value is None:
                    continue
                kind, first = kinds.setdefault(name, (_kind(value), number))
                if kind != _kind(value):
                    return f"`{name}` is {kind} in line {first} and {_kind(value)} in line {number}"
    return None


def _text_lines(file: Iterable[bytes]) -> Iterator[bytes]:
    # Without what is around them
    for number, line in enumerate(file):
        yield (line.removeprefix(_BOM) if number == 0 else line).strip(_BLANK)


def _holds_several(line: bytes) -> bool:
    try:
        _, end = json.JSONDecoder().raw_decode(text := line.decode())
    except (RecursionError, ValueError):
        return False
    return text[end:].lstrip().startswith("{")


def _is_object(line: bytes) -> bool:
    try:
        parse_object(line)
    except ValueError as error:
        return "twice" in str(error)
    return True


def _problem_of(line: bytes) -> str:
    try:
        parse_object(line)
    except ValueError as error:
        return str(error)
    raise AssertionError("an object begins with a brace")


def _check_objects(text: str) -> None:
    # Objects over any number of lines, one after another
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        line = text.count("\n", 0, at) + 1
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {error.lineno} is not JSON: {error.msg} at column {error.colno}.") from error
        except (RecursionError, ValueError) as error:
            raise ValueError(f"line {line} is not JSON that can be read: {error}.") from error
        if not isinstance(value, dict):
            raise ValueError(f"line {line} is {not_an_object(value)}.")


def _parse(text: bytes, in_line: bool = False) -> Any:
    try:
        return json.loads(text.removeprefix(_BOM).decode(), object_pairs_hook=_each_once)
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(error, text)) from error
    except json.JSONDecodeError as error:
        line = "" if in_line else f"line {error.lineno}, "
        raise ValueError(f"not JSON: {error.msg} at {line}column {error.colno}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of too many digits, a name twice
        raise ValueError(f"not JSON that can be read: {error}") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has `{twice}` twice")
    return row


def _not_utf8(error: UnicodeDecodeError, text: bytes = b"") -> str:
    byte = error.object[error.start]
    line = text.count(b"\n", 0, error.start) + 1
    where = f"line {line}, " if line > 1 else ""
    return f"not UTF-8: byte 0x{byte:02x} at {where}byte {error.start + 1} ({error.reason}). Save the file as UTF-8"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names[type(value)]
