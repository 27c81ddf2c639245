"""Scored parts of a file on disk, so that a run that was killed goes on behind the parts that it finished."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


__all__ = ["ScoredParts", "ScoredRow"]

_RUN_FILE = "run.json"


@dataclass
class ScoredRow:
    """
    What became of a row.

    Args:
        number (`int`):
            Its number in the source.
        rewards (`list[float]`, *optional*):
            Rewards of its completions.
        problem (`str`, *optional*):
            Why it has none.
        cut (`bool`, *optional*, defaults to `False`):
            Whether `max_length` cut it.
    """

    number: int
    rewards: list[float] | None = None
    problem: str | None = None
    cut: bool = False


class ScoredParts:
    """
    A folder with one JSON-lines file for each part.

    A file is moved into place whole, so a killed process never leaves half a part.

    Args:
        folder (`Path`):
            Folder, which is this run's alone.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, identity: dict[str, Any], *, discard: bool) -> None:
        """
        Makes the folder, or takes up the one of a run with the same identity.

        Args:
            identity (`dict`):
                All that scores depend on, by name.
            discard (`bool`):
                Remove the parts of a run with another identity.

        Raises:
            ValueError: If the folder holds parts of a run with another identity, or something else.
        """
        identity = json.loads(json.dumps(identity))
        run_file = self.folder / _RUN_FILE
        if run_file.is_file():
            found = json.loads(run_file.read_text())
            if found == identity:
                return
            if not discard:
                raise ValueError(
                    f"{self.folder} holds parts of an interrupted run with other settings: "
                    f"{'; '.join(_differences(found, identity))}. Repeat its settings to go on with it, or pass "
                    "`overwrite` to start anew."
                )
            shutil.rmtree(self.folder)
        elif self.folder.exists() and any(path.suffix != ".tmp" for path in self.folder.iterdir()):
            raise ValueError(f"{self.folder} is needed for parts, and holds something else. Move it away.")
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(run_file, json.dumps(identity, indent=2) + "\n")

    def read(self, part: int, size: int) -> list[ScoredRow] | None:
        """The rows of a part of `size` rows, or `None` if it is not finished."""
        try:
            lines = self._path(part).read_text(encoding="utf-8").splitlines()
            rows = [ScoredRow(**json.loads(line)) for line in lines]
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return rows if len(rows) == size else None

    def write(self, part: int, rows: Sequence[ScoredRow]) -> None:
        """Adds a finished part."""
        _write(self._path(part), "".join(json.dumps(asdict(row)) + "\n" for row in rows))

    def has(self, part: int) -> bool:
        """Whether a part is there."""
        return self._path(part).is_file()

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder)

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.jsonl"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _differences(found: dict[str, Any], now: dict[str, Any]) -> list[str]:
    different = []
    for name in now:
        if found.get(name) != now[name]:
            is_hash = name in ("rows", "policy", "reference", "tokenizer") and found.get(name) and now[name]
            values = "changed" if is_hash else f"was {found.get(name)!r}, is {now[name]!r}"
            different.append(f"`{name}` {values}")
    return different
