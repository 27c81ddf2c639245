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
        self._written: dict[str, int] = {}  # lines of each file that are this object's

    def append(self, file: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows to a file."""
        lines = [json.dumps(row) + "\n" for row in rows]
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / file, "a", encoding="utf-8") as stream:
            stream.writelines(lines)
        self._written[file] = self._written.get(file, 0) + len(lines)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.append(FIGURES, state.log_history[-1:])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # What another run wrote into this folder goes, or what this one wrote after the checkpoint that it resumes
        # from. An evaluation of this trainer before its training stays
        if not state.is_world_process_zero:
            return
        for file in (FIGURES, DISTRIBUTIONS, SAMPLES):
            path = self.folder / file
            if path.is_file():
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                before = len(lines) - self._written.get(file, 0)
                kept = [line for line in lines[:before] if state.global_step and _step_of(line) <= state.global_step]
                write_text(path, "".join(kept + lines[before:]))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # the last line of a run that was killed
        return math.inf
