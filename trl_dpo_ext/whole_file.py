"""Files written whole: under another name, then moved into place, so that no reader ever finds half of one."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


__all__ = ["whole_file", "write_text"]


@contextmanager
def whole_file(path: str | Path, folder: str | Path | None = None) -> Iterator[Path]:
    """
    Gives the path of a new, empty file to write, and moves it to `path` if the block ends without an error.

    Whatever stands at `path` is replaced: a link is not followed, so that nothing outside the folder is written to. A
    killed process leaves `path` as it was, and a file `.*.tmp`.

    Args:
        path (`str` or `Path`):
            File to write. Its folder exists.
        folder (`str` or `Path`, *optional*):
            Where to write it first, on the same file system. Beside `path` by default.

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
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # new, so that it is no one's link
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` whole, as UTF-8; half a surrogate pair becomes a question mark."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="replace", newline="\n")
