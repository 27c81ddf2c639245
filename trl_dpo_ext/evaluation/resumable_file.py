"""A JSON Lines file that is computed in parts on any number of processes, and goes on after an interruption."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from trl_dpo_ext.processes import together
from trl_dpo_ext.reward_model.files.join_parts import to_json
from trl_dpo_ext.reward_model.files.parts import Parts, differences
from trl_dpo_ext.whole_file import whole_file, write_text


__all__ = ["ResumableFile", "check_output", "settings_file"]


def settings_file(output: Path) -> Path:
    """
    Returns the path of the file with the settings of an output.

    They are in a file of their own, because they are the same for all rows and are what a resumed run is compared
    with.
    """
    return Path(f"{output}.settings.json")


def check_output(output: Path) -> None:
    """
    Creates the output folder, and checks for errors that would otherwise appear only at the end.

    Raises:
        ValueError: If the file cannot be written.
    """
    if output.suffix != ".jsonl":
        raise ValueError(f"{output} must end in .jsonl.")
    if output.is_dir():
        raise ValueError(f"{output} is a folder.")
    output.parent.mkdir(parents=True, exist_ok=True)


class ResumableFile:
    """
    Rows of an output, computed in parts.

    Process i computes the parts i, i + n, ... of n processes, and the main process joins them. Finished parts are
    stored in `<output>.parts` until the file is written, so an interrupted run can be resumed. No more than a part is
    in memory. Everything that the rows depend on is written to `<output>.settings.json`. If the output exists with the
    same settings, nothing is computed.

    Args:
        output (`Path`):
            `.jsonl` file.
        sizes (`Sequence[int]`):
            Number of rows of each part.
        unit (`str`):
            What a row is, for the progress bar.
        title (`str`):
            What the progress bar says.
    """

    def __init__(self, output: Path, sizes: Sequence[int], *, unit: str, title: str):
        self.output = output
        self.sizes = sizes
        self._unit, self._title = unit, title
        self._parts = _Lines(output)

    def write(
        self,
        identity: Callable[[], dict[str, Any]],
        rows_of: Callable[[int], Iterable[dict[str, Any]]],
        *,
        check_part: Callable[[int], None] | None = None,
        overwrite: bool = False,
    ) -> int:
        """
        Computes the rows that are missing, and writes the file. All processes must call it.

        Args:
            identity (`Callable`):
                Returns everything that the rows depend on, by name. Called on the main process.
            rows_of (`Callable`):
                Computes the rows of a part.
            check_part (`Callable`, *optional*):
                Checks the input of a part. All parts are checked before the first is computed, which may be hours
                before the last.
            overwrite (`bool`, *optional*, defaults to `False`):
                Whether to replace a file, and the parts of a run, with other settings.

        Returns:
            `int`: Number of rows that this run computed, on all processes.

        Raises:
            ValueError: If the file, or the parts of an interrupted run, have other settings.
        """
        state = PartialState()
        found: dict[str, Any] = {}
        is_complete = False
        with together():
            check_output(self.output)
            if state.is_main_process:
                found = json.loads(json.dumps(identity()))
                is_complete = self._is_complete(found, overwrite)
        [is_complete] = broadcast_object_list([is_complete])
        if is_complete:
            return 0
        with together():
            if check_part is not None:
                for part in self._own_parts():
                    check_part(part)
        with self._parts.locked() if state.is_main_process else nullcontext():
            with together():
                if state.is_main_process:
                    self._parts.begin(found, discard=overwrite)
            num_new = self._compute(rows_of)
            with together():  # the others go on when the file exists
                if state.is_main_process:
                    self.output.unlink(missing_ok=True)  # there is never a file with the settings of another
                    write_text(settings_file(self.output), json.dumps(found, indent=2) + "\n")
                    self._join()
                    self._parts.remove()
        return num_new

    def _is_complete(self, identity: dict[str, Any], overwrite: bool) -> bool:
        """Whether the file exists with these settings."""
        if not self.output.exists():
            return False
        if problem := self._problem(identity):
            if overwrite:
                return False
            raise ValueError(
                f"{self.output} already exists and {problem}. Choose another output, or pass `overwrite` to replace "
                "it."
            )
        if self._parts.folder.exists():  # the run was killed at its very end
            with self._parts.locked():
                self._parts.remove()
        return True

    def _problem(self, identity: dict[str, Any]) -> str | None:
        settings = settings_file(self.output)
        try:
            different = differences(json.loads(settings.read_text(encoding="utf-8")), identity)
        except (OSError, ValueError, AttributeError):
            return f"{settings} does not say how it was made"
        return f"was made with other settings: {'; '.join(different)}" if different else None

    def _own_parts(self) -> range:
        state = PartialState()
        return range(state.process_index, len(self.sizes), state.num_processes)

    def _compute(self, rows_of: Callable[[int], Iterable[dict[str, Any]]]) -> int:
        state = PartialState()

        def num_done() -> int:
            return sum(size for part, size in enumerate(self.sizes) if self._parts.has(part))

        there = shown = num_done()
        total = sum(self.sizes)
        bar = logging.tqdm(
            total=total, initial=there, unit=self._unit, desc=self._title, disable=not state.is_main_process
        )
        with bar as progress:
            with together():
                for part in self._own_parts():
                    if not self._parts.is_whole(part, self.sizes[part]):
                        self._parts.write(part, rows_of(part))
                        done = num_done()  # includes other processes
                        progress.update(done - shown)
                        shown = done
            progress.update(total - shown)
        return total - there

    def _join(self) -> None:
        with whole_file(self.output, self._parts.folder) as unfinished, unfinished.open("wb") as file:
            for part, size in enumerate(self.sizes):
                if not self._parts.is_whole(part, size):
                    raise ValueError(
                        f"Part {part} is not in {self._parts.folder}, although its process has finished. The output "
                        "folder must be accessible to all processes."
                    )
                file.write(self._parts.path(part).read_bytes())


class _Lines(Parts):
    """Parts whose lines are those of the output."""

    def is_whole(self, part: int, num_lines: int) -> bool:
        """Whether a part is finished."""
        if not self.has(part):
            return False
        lines = self.path(part).read_bytes().splitlines(keepends=True)
        return len(lines) == num_lines and all(line.endswith(b"}\n") for line in lines)

    def write(self, part: int, rows: Iterable[dict[str, Any]]) -> None:
        """Writes a finished part."""
        write_text(self.path(part), "".join(map(to_json, rows)))
