"""The files in which a run's figures stay beside its weights, for `trl-dpo-ext report` and for plots of your own."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_dpo_ext.whole_file import write_text


__all__ = ["DISTRIBUTIONS", "FIGURES", "FOLDER", "SAMPLES", "RunLog"]

FOLDER = "run_log"
FIGURES = "figures.jsonl"
DISTRIBUTIONS = "distributions.jsonl"
SAMPLES = "samples.jsonl"


class RunLog(TrainerCallback):
    """
    JSON lines in `output_dir/run_log/`, each with the `step` it was written at; written by the main process.

    - `figures.jsonl`: what is logged, one log a line.
    - `distributions.jsonl`: histograms of rewards and margins, and the points of the reliability diagram, of each
      evaluation: `name`, `edges`, `counts`.
    - `samples.jsonl`: with `log_samples`, what policy and reference answer.

    Args:
        output_dir (`str` or `Path`):
            The run's folder.
    """

    def __init__(self, output_dir: str | Path):
        self.folder = Path(output_dir) / FOLDER
        self.lines: dict[str, int] = {}  # of each file, for the checkpoint that a resumed run goes on from
        self._written: dict[str, int] = {}  # of them this object's
        self._before: tuple[Path, dict[str, int]] | None = None

    def append(self, file: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows to a file."""
        lines = [_line(row) for row in rows]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / file
        if path.is_symlink():  # someone else's, which would be written through
            path.unlink()
        with open(path, "a", encoding="utf-8") as stream:
            stream.writelines(lines)
        for counts in (self.lines, self._written):
            counts[file] = counts.get(file, 0) + len(lines)

    def go_on_from(self, checkpoint: str | Path, lines: dict[str, int]) -> None:
        """
        Has the training that begins next go on where a checkpoint was.

        Args:
            checkpoint (`str` or `Path`):
                Its folder, in that of its run.
            lines (`dict[str, int]`):
                How many lines each file had then; where it is not known, the lines up to the checkpoint's update stay.
        """
        self._before = Path(checkpoint).parent / FOLDER, lines

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.append(FIGURES, state.log_history[-1:])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # What another run wrote into this folder goes, or what this one wrote after the checkpoint that it resumes
        # from. An evaluation of this trainer before its training stays, unless it has been written before
        if not state.is_world_process_zero:
            return
        before, self._before = self._before, None
        for file in (FIGURES, DISTRIBUTIONS, SAMPLES):
            path = self.folder / file
            there = _lines_of(path)
            own = there[len(there) - self._written.get(file, 0) :]
            kept: list[str] = []
            if before is not None:
                folder, lines = before
                kept = _up_to(_lines_of(folder / file), lines.get(file), state.global_step)
                if file == FIGURES:  # the checkpoint has them all, but for evaluations before the training
                    history = [_line(row) for row in state.log_history]
                    kept = kept[: len(kept) - len(history)] + history
            starts_before = any(_step_of(line) == 0 for line in kept)
            lines_now = kept if starts_before else own + kept
            if there or lines_now:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(path, "".join(lines_now))
            self.lines[file] = len(lines_now)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []


def _up_to(lines: list[str], count: int | None, step: int) -> list[str]:
    return [line for line in lines if _step_of(line) <= step] if count is None else lines[:count]


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # the last line of a run that was killed
        return math.inf
