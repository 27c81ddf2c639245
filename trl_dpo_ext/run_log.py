"""The files with a run's metrics, for `trl-dpo-ext report` and for your own plots."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_dpo_ext.run_files import DISTRIBUTIONS, METRICS, RUN_LOG, SAMPLES
from trl_dpo_ext.whole_file import write_text


__all__ = ["RunLog"]


class RunLog(TrainerCallback):
    """
    Writes JSON lines to `output_dir/run_log/`, on the main process. Every line has the `step` of its update.

    - `metrics.jsonl`: the logged metrics, one line for each log.
    - `distributions.jsonl`: histograms of rewards and margins, and the points of the reliability diagram, of each
      evaluation: `name`, `edges`, `counts`.
    - `samples.jsonl`: with `log_samples`, the answers of policy and reference.

    Args:
        output_dir (`str` or `Path`):
            The run's folder.
    """

    def __init__(self, output_dir: str | Path):
        self.folder = Path(output_dir) / RUN_LOG
        self.lines: dict[str, int] = {}  # of each file, for a checkpoint to resume from
        self._written: dict[str, int] = {}  # those that this object wrote
        self._before: tuple[Path, dict[str, int]] | None = None

    def append(self, file: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows to a file."""
        lines = [_line(row) for row in rows]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / file
        if path.is_symlink():  # to someone else's file, which would be changed
            path.unlink()
        with open(path, "a", encoding="utf-8") as stream:
            stream.writelines(lines)
        for counts in (self.lines, self._written):
            counts[file] = counts.get(file, 0) + len(lines)

    def go_on_from(self, checkpoint: str | Path, lines: dict[str, int]) -> None:
        """
        Lets the next training continue the log of a checkpoint.

        Args:
            checkpoint (`str` or `Path`):
                Its folder, inside the folder of its run.
            lines (`dict[str, int]`):
                Number of lines that each file had then. If unknown, the lines up to the checkpoint's update are kept.
        """
        self._before = Path(checkpoint).parent / RUN_LOG, lines

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.append(METRICS, state.log_history[-1:])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Drops the lines of another run in this folder, and lines of this run after the checkpoint that it resumes
        # from. Keeps an evaluation of this trainer before its training, unless the kept lines have one already
        if not state.is_world_process_zero:
            return
        before, self._before = self._before, None
        for file in (METRICS, DISTRIBUTIONS, SAMPLES):
            path = self.folder / file
            there = _lines_of(path)
            own = there[len(there) - self._written.get(file, 0) :]
            kept: list[str] = []
            if before is not None:
                folder, lines = before
                kept = _up_to(_lines_of(folder / file), lines.get(file), state.global_step)
                if file == METRICS:  # the checkpoint has all lines but evaluations before the training
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
