"""Atomic writing of files: written under another name, then moved into place, so that readers never see a part."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


__all__ = ["whole_file", "write_text"]


@contextmanager
def whole_file(path: str | Path, folder: str | Path | None = None) -> Iterator[Path]:
    """
    Yields the path of a new, empty file to write, and moves it to `path` if the block ends without an error.

    An existing file or link at `path` is replaced. Links are not followed, so nothing outside the folder is written.
    If the process is killed, `path` does not change, and a file `.*.tmp` remains.

    Args:
        path (`str` or `Path`):
            File to write. Its folder must exist.
        folder (`str` or `Path`, *optional*):
            Folder for the unfinished file, on the same file system. Default: the folder of `path`.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from trl_dpo_ext.whole_file import whole_file

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole_file(f"{folder}/scores.txt") as unfinished:
    ...         _ = unfinished.write_text("0.5")
    ...     print(Path(folder, "scores.txt").read_text())
    0.5

    ```
    """
    path = Path(path)
    unfinished = Path(folder or path.parent, f".{secrets.token_hex(8)}.tmp")
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # must be new, not an existing link
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` atomically, as UTF-8. Half a surrogate pair becomes a question mark."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="replace", newline="\n")
