"""Finished parts of a file on disk, so that an interrupted run can resume after them."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.whole_file import write_text


__all__ = ["Parts", "ScoredParts", "ScoredRow", "differences"]

logger = get_logger(__name__)

_RUN_FILE, _LOCK_FILE = "run.json", "lock"


@dataclass
class ScoredRow:
    """
    Result of a row.

    Args:
        number (`int`):
            Index of the row in the source.
        rewards (`list[float]`, *optional*):
            Rewards of its completions.
        problem (`str`, *optional*):
            Reason why there are no rewards.
        cut (`bool`, *optional*, defaults to `False`):
            Whether the row is truncated to `max_length`.
    """

    number: int
    rewards: list[float] | None = None
    problem: str | None = None
    cut: bool = False


class Parts:
    """
    A folder with one JSON-lines file for each part.

    Files are moved into place when complete, so an interrupted process leaves no partial file.

    Args:
        output (`Path`):
            Output file. The folder is `<output>.parts`.
    """

    def __init__(self, output: Path):
        self.output = output
        self.folder = Path(f"{output}.parts")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Creates the folder and locks it against other runs. The lock of a killed run is released by the system.

        Raises:
            ValueError: If another run writes the same output, or the path of the folder is in use.
        """
        if self.folder.is_symlink():
            raise ValueError(f"{self.folder} is needed for the parts, but it is a link. Remove it.")
        ours = (_RUN_FILE, _LOCK_FILE)
        if self.folder.exists() and not any((self.folder / name).is_file() for name in ours):
            if not self.folder.is_dir() or any(path.suffix != ".tmp" for path in self.folder.iterdir()):
                raise ValueError(f"{self.folder} is needed for the parts, but it has other contents. Move it away.")
        handle = self._lock()
        try:
            yield
        finally:
            os.close(handle)

    def check_free(self) -> None:
        """
        Checks that no other run writes the same output.

        Raises:
            ValueError: If another run writes it.
        """
        if (self.folder / _LOCK_FILE).exists():
            with self.locked():
                pass

    def begin(self, identity: dict[str, Any], *, discard: bool) -> None:
        """
        Uses the existing parts of a run with the same identity, or starts without parts. Needs [`locked`].

        Args:
            identity (`dict`):
                Everything that the parts depend on, by name.
            discard (`bool`):
                Whether to remove the parts of a run with another identity.

        Raises:
            ValueError: If the folder has parts of a run with another identity.
        """
        identity = json.loads(json.dumps(identity))
        run_file = self.folder / _RUN_FILE
        if any(self.folder.glob("part-*.jsonl")) and run_file.is_file():
            found = _read_identity(run_file)
            if found == identity:
                return
            if found is None and not discard:
                raise ValueError(
                    f"{run_file} is damaged, so the run of the parts in its folder is unknown. Pass `overwrite` to "
                    "start again."
                )
            if found is not None and not discard:
                raise ValueError(
                    f"{self.folder} has parts of an interrupted run with other settings: "
                    f"{'; '.join(differences(found, identity))}. To resume that run, use its settings. To start "
                    "again, pass `overwrite`."
                )
            for path in self.folder.glob("part-*.jsonl"):
                path.unlink()
        write_text(run_file, json.dumps(identity, indent=2) + "\n")

    def path(self, part: int) -> Path:
        """Returns the file of a part."""
        return self.folder / f"part-{part:06d}.jsonl"

    def has(self, part: int) -> bool:
        """Whether a part exists."""
        path = self.path(part)
        return path.is_file() and not path.is_symlink()

    def remove(self) -> None:
        """Removes the folder."""
        # Renamed first, so that a run that starts now does not find a partial folder
        removed = self.folder.with_name(f".{secrets.token_hex(8)}.tmp")
        self.folder.rename(removed)
        shutil.rmtree(removed)

    def _lock(self) -> int:
        try:
            import fcntl
        except ModuleNotFoundError:  # Windows
            fcntl = None  # type: ignore[assignment]
        path = self.folder / _LOCK_FILE
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            except FileNotFoundError:  # the previous run has just removed its folder
                continue
            try:
                if fcntl is not None:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    logger.warning(f"{self.folder} is on a file system without locks. Start no other run on it.")
                    return handle
                os.close(handle)
                if isinstance(error, (BlockingIOError, PermissionError)):
                    raise ValueError(
                        f"Another run writes {self.output} (it has locked {path}). Wait for it, or choose another "
                        "output."
                    ) from error
                raise
            os.close(handle)


class ScoredParts(Parts):
    """[`Parts`] of scored rows."""

    def read(self, part: int, numbers: Sequence[int]) -> list[ScoredRow] | None:
        """Returns the rows of a part with these indices, or `None` if the part is not finished."""
        if not self.has(part):
            return None
        try:
            lines = self.path(part).read_text(encoding="utf-8").splitlines()
            rows = [ScoredRow(**json.loads(line)) for line in lines]
        except (ValueError, TypeError, RecursionError):  # damaged
            return None
        return rows if [row.number for row in rows] == list(numbers) else None

    def write(self, part: int, rows: Sequence[ScoredRow]) -> None:
        """Writes a finished part."""
        write_text(self.path(part), "".join(json.dumps(asdict(row)) + "\n" for row in rows))


def _read_identity(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def differences(found: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """
    Describes the entries of an identity that differ from an earlier one. Hashes are called changed.

    Example:

    ```python
    >>> from trl_dpo_ext.reward_model.files.parts import differences

    >>> differences({"beta": 0.1, "rows": "0" * 32}, {"beta": 0.2, "rows": "1" * 32})
    ['`beta` was 0.1, is 0.2', '`rows` changed']

    ```
    """
    different = []
    for name in now:
        if found.get(name) != now[name]:
            is_hash = all(isinstance(value, str) and len(value) == 32 for value in (found.get(name), now[name]))
            values = "changed" if is_hash else f"was {found.get(name)!r}, is {now[name]!r}"
            different.append(f"`{name}` {values}")
    return different
