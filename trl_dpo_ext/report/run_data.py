"""The files of a run, read for the report: metrics, distributions, samples and settings. Damaged lines are skipped."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from trl_dpo_ext.run_files import DISTRIBUTIONS, METRICS, RL_STATE, RUN_LOG, SAMPLES, STATE, split_metric_name


__all__ = ["Curve", "Distribution", "RunData", "Sample", "find_runs", "read_run"]

TRAINER_STATE = "trainer_state.json"

# Larger numbers are treated as infinite: no axis can show them
_LARGEST, _DIGITS = 1e15, 19
_LARGEST_SECONDS = 1e11


@dataclass(frozen=True)
class Curve:
    """
    The values of a metric over the run.

    Args:
        steps (`list[int]`): Updates at which it was logged, in order, each once.
        values (`list[float]`): Its values; NaN or infinite where the run logged that.
    """

    steps: list[int]
    values: list[float]

    def finite(self) -> list[tuple[int, float]]:
        """The points with a finite value, as (update, value)."""
        return [point for point in zip(self.steps, self.values, strict=True) if math.isfinite(point[1])]


@dataclass(frozen=True)
class Distribution:
    """
    A histogram of one evaluation.

    Args:
        step (`int`): Update at which it was taken.
        edges (`list[float]`): The n + 1 edges of n bins.
        counts (`list[float]`): How many examples each bin holds.
        confidence (`list[float or None]`): Mean implied probability in each bin; only of the reliability diagram.
        accuracy (`list[float or None]`): Share in the right order in each bin; only of the reliability diagram.
    """

    step: int
    edges: list[float]
    counts: list[float]
    confidence: list[float | None] = field(default_factory=list)
    accuracy: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """Completions of a prompt by policy and reference (if any), with rewards. `name` is the evaluation set."""

    step: int
    name: str
    prompt: str
    policy: str
    policy_reward: float | None
    reference: str | None
    reference_reward: float | None


@dataclass
class RunData:
    """
    Everything that the report shows of a run.

    Args:
        folder (`Path`): The run's folder.
        source (`Path`): File that the metrics come from.
        training (`dict[str, Curve]`): Metrics of training batches, by name.
        evaluation (`dict[str, dict[str, Curve]]`):
            Metrics of each evaluation set; a single set without a name is called `"evaluation"`.
        distributions (`dict[str, dict[str, list[Distribution]]]`):
            Histograms of each set, by name, ordered by update.
        samples (`list[Sample]`): Samples of the last evaluation of each set.
        settings (`dict[str, Any]`): The trainer's description of the run; empty if there is none.
        seconds (`float` or `None`): Duration of the training; `None` until it ends.
        notes (`list[str]`): What was damaged, missing or not finite.
    """

    folder: Path
    source: Path
    training: dict[str, Curve] = field(default_factory=dict)
    evaluation: dict[str, dict[str, Curve]] = field(default_factory=dict)
    distributions: dict[str, dict[str, list[Distribution]]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    notes: list[str] = field(default_factory=list)

    def curves(self, metric: str) -> dict[str, Curve]:
        """The curves of a metric with a finite value, by source: `"training"` or the name of an evaluation set."""
        everywhere = {"training": self.training} | self.evaluation
        return {
            where: names[metric] for where, names in everywhere.items() if metric in names and names[metric].finite()
        }


def read_run(folder: str | Path) -> RunData:
    """
    Reads what a run has written so far. Runs of `trl.DPOTrainer` are read from their `trainer_state.json`.

    Args:
        folder (`str` or `Path`):
            The run's `output_dir`.

    Returns:
        [`RunData`]

    Raises:
        FileNotFoundError: If there is no such folder, or no metric in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    notes: list[str] = []
    source, lines = _metric_lines(folder, notes)
    run = RunData(folder, source, notes=notes)
    _add_metrics(run, lines)
    if not run.training and not run.evaluation:
        raise FileNotFoundError(f"{source} holds no metrics yet: none was logged.")
    _add_distributions(run)
    _add_samples(run)
    _add_settings(run)
    return run


def find_runs(folder: str | Path) -> list[Path]:
    """The folders of runs at most two levels below `folder`."""
    logs = [found for depth in ("*", "*/*") for found in Path(folder).glob(f"{depth}/{RUN_LOG}/{METRICS}")]
    states = [found for depth in ("*", "*/*") for found in Path(folder).glob(f"{depth}/{TRAINER_STATE}")]
    folders = {log.parents[1] for log in logs} | {
        state.parents[1] if state.parent.name.startswith("checkpoint-") else state.parent for state in states
    }
    return sorted(folders - {Path(folder)})


def _metric_lines(folder: Path, notes: list[str]) -> tuple[Path, list[tuple[str, dict[str, Any]]]]:
    # The file with the metrics, and its lines as (where, line)
    path = folder / RUN_LOG / METRICS
    if path.is_file():
        lines = [(where, line) for where, line in _json_lines(path, notes) if _has_step(where, line, notes)]
        if lines:
            return path, lines
    for state in (place / TRAINER_STATE for place in _with_checkpoints(folder)):
        if state.is_file():
            try:
                history = list(_parse(state.read_text(encoding="utf-8"))["log_history"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                notes.append(f"{state} cannot be read ({error!r}): left out.")
                continue
            entries = [(f"{state.name}, entry {number}", line) for number, line in enumerate(history, start=1)]
            return state, [(where, line) for where, line in entries if _has_step(where, line, notes)]
    raise FileNotFoundError(
        f"{folder} holds no metrics of a run: no line in {RUN_LOG}/{METRICS}, no {TRAINER_STATE}, no checkpoint with "
        "one."
    )


def _with_checkpoints(folder: Path) -> Iterator[Path]:
    # The folder, then its checkpoints, newest first: the newest checkpoint of a killed run may be broken
    yield folder
    if any(folder.glob("checkpoint-*")):
        from trl_dpo_ext.trainers.checkpoints.checkpoint_files import checkpoints_of  # takes seconds

        yield from checkpoints_of(folder)


def _json_lines(path: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    # The objects of a JSON Lines file; other lines are noted
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, start=1):
            where = f"{path.name}, line {number}"
            if not text.strip():
                continue
            try:
                line = _parse(text)
            except (ValueError, RecursionError):
                notes.append(f"{where} is incomplete (was the run killed while writing?): left out.")
                continue
            if isinstance(line, dict):
                yield where, line
            else:
                notes.append(f"{where} is not a JSON object: left out.")


def _has_step(where: str, line: Any, notes: list[str]) -> bool:
    step = line.get("step") if isinstance(line, dict) else None
    found = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < _LARGEST
    if not found:
        notes.append(f"{where} has no whole number `step`: left out.")
    return found


def _set_of(prefix: str) -> str:
    name = "evaluation" if prefix == "eval" else prefix.removeprefix("eval_")
    return prefix if name == "training" else name  # this name is taken by the training batches


def _add_metrics(run: RunData, lines: list[tuple[str, dict[str, Any]]]) -> None:
    for (_, before), (where, line) in pairwise(lines):
        if line["step"] < before["step"]:
            run.notes.append(
                f"{where} goes back from update {before['step']:,} to {line['step']:,} (a resumed run, or another in "
                "the same folder): where an update was logged twice, the last values are drawn."
            )
    found: dict[tuple[str | None, str], dict[int, float]] = {}
    for where, line in lines:
        if "train_runtime" in line:  # the totals at the end
            if _is_number(line["train_runtime"]) and 0 <= line["train_runtime"] < _LARGEST_SECONDS:
                run.seconds = float(line["train_runtime"])
            else:
                run.notes.append(f"{where} has no time in `train_runtime`: left out.")
        # Every evaluation logs its runtime, which shows its prefix even if a custom metric has the name of one of ours
        prefixes = [name.removesuffix("_runtime") for name in line if name.endswith("_runtime")]
        totals = "train_runtime" in line  # and the metrics of the last window
        for name, value in line.items():
            split = split_metric_name(name)
            if split is None or not (value is None or _is_number(value)):
                continue
            prefix, _ = split
            is_evaluation = not totals and (prefix in prefixes if prefixes else (f"{prefix}_").startswith("eval_"))
            if prefix is None or is_evaluation:
                found.setdefault(split, {})[line["step"]] = math.nan if value is None else _drawn(value)
    for (prefix, metric), points in found.items():
        steps = sorted(points)
        curve = Curve(steps, [points[step] for step in steps])
        names = run.training if prefix is None else run.evaluation.setdefault(_set_of(prefix), {})
        names[metric] = curve
        if broken := [step for step in steps if not math.isfinite(points[step])]:
            name = metric if prefix is None else f"{prefix}_{metric}"
            run.notes.append(f"`{name}` is not finite at {len(broken):,} updates (crosses), the first {broken[0]:,}.")


def _parse(text: str) -> Any:
    # Python reads integers of any size, and the largest cannot be converted to a float
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < _DIGITS else float(digits))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _drawn(value: float) -> float:
    # Axes overflow before floats do
    return float(value) if abs(value) <= _LARGEST else math.copysign(math.inf, value)


def _add_distributions(run: RunData) -> None:
    found: dict[tuple[str, str], dict[int, Distribution]] = {}
    for where, line in _json_lines(run.folder / RUN_LOG / DISTRIBUTIONS, run.notes):
        split = split_metric_name(str(line.get("name")))
        if split is None or split[0] is None:
            continue
        if not _has_step(where, line, run.notes):
            continue
        edges, counts = line.get("edges"), line.get("counts")
        bins = len(counts) if isinstance(counts, list) else 0
        per_bin = [line[name] for name in ("confidence", "accuracy") if name in line]
        if (
            not _are_numbers(edges, bins + 1)
            or not _are_numbers(counts, bins)
            or not all(_are_numbers(values, bins, or_none=True) for values in per_bin)
        ):
            run.notes.append(f"{where} is not a histogram with n counts and n + 1 edges: left out.")
            continue
        distribution = Distribution(line["step"], edges, counts, *per_bin)
        found.setdefault((_set_of(split[0]), split[1]), {})[distribution.step] = distribution
    for (where, name), by_step in found.items():
        run.distributions.setdefault(where, {})[name] = [by_step[step] for step in sorted(by_step)]


def _are_numbers(values: Any, count: int, or_none: bool = False) -> TypeGuard[list[Any]]:
    if not isinstance(values, list) or len(values) != count:
        return False
    return all((or_none and value is None) or (_is_number(value) and math.isfinite(_drawn(value))) for value in values)


def _add_samples(run: RunData) -> None:
    found: dict[str, list[Sample]] = {}
    for where, line in _json_lines(run.folder / RUN_LOG / SAMPLES, run.notes):
        if not _has_step(where, line, run.notes):
            continue
        parts: dict[str, Any] = {name: line.get(name) for name in Sample.__dataclass_fields__}
        texts = ["name", "prompt", "policy", *(["reference"] if "reference" in line else [])]
        wrong = [name for name in texts if not isinstance(parts[name], str)]
        wrong += [
            name
            for name in ("policy_reward", "reference_reward")
            if not (parts[name] is None or _is_number(parts[name]))
        ]
        if wrong:
            run.notes.append(f"{where} is not a sample, see its {', '.join(f'`{name}`' for name in wrong)}: left out.")
            continue
        sample = Sample(**(parts | {"name": _set_of(parts["name"])}))
        found.setdefault(sample.name, []).append(sample)
    for samples in found.values():
        run.samples += [sample for sample in samples if sample.step == samples[-1].step]


def _add_settings(run: RunData) -> None:
    # Saved with the weights: in the folder once `save_model` has run, until then in the checkpoints
    for path in (place / name for place in _with_checkpoints(run.folder) for name in (STATE, RL_STATE)):
        if path.is_file():
            try:
                settings = _parse(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                run.notes.append(f"{path.name} is not JSON ({error}): left out.")
                continue
            if isinstance(settings, dict):
                run.settings = settings
                return
            run.notes.append(f"{path.name} is not a JSON object: left out.")
