"""What a run wrote about itself: figures, distributions, samples and settings. A damaged line costs only itself."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard


__all__ = ["Curve", "Distribution", "RunData", "Sample", "find_runs", "read_run"]

LOG_FOLDER = "run_log"
FIGURES_FILE = f"{LOG_FOLDER}/figures.jsonl"
DISTRIBUTIONS_FILE = f"{LOG_FOLDER}/distributions.jsonl"
SAMPLES_FILE = f"{LOG_FOLDER}/samples.jsonl"
SETTINGS_FILE = "trl_dpo_ext.json"
TRAINER_STATE = "trainer_state.json"

# Beyond it a number says nothing, and no axis can show it
_LARGEST, _DIGITS = 1e15, 19
_LARGEST_SECONDS = 1e11

_FIGURES = (
    "loss",
    "aux_loss",
    "learning_rate",
    "grad_norm",
    "entropy",
    "kl_per_token",
    "mean_token_accuracy",
    "num_tokens",
    "epoch",
    "logps/(?:chosen|rejected)(?:_drift)?",
    "rewards/(?:chosen|rejected|margins|accuracies|accuracies_from_length|length_correlation|calibration_error)",
    "rewards/(?:gradient_weight|gradient_weight_near_0|kendall_tau|top1_accuracies|order_probabilities)",
    r"rewards/rank_\d+",
    "rewards/calibration",  # a distribution
)
# The shortest prefix wins, so that `eval_aux_loss` is the `aux_loss` of `eval` and not the `loss` of a set `aux`
_NAME = re.compile(rf"(?:(?P<prefix>.+?)_)??(?P<figure>{'|'.join(_FIGURES)})")


@dataclass(frozen=True)
class Curve:
    """
    A figure over the run.

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
        confidence (`list[float or None]`): Mean implied probability in each bin; of the reliability diagram alone.
        accuracy (`list[float or None]`): Share of right order in each bin; of the reliability diagram alone.
    """

    step: int
    edges: list[float]
    counts: list[float]
    confidence: list[float | None] = field(default_factory=list)
    accuracy: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """A prompt of an evaluation set (`name`), completed by the policy and the reference (if any), with rewards."""

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
    What is known of a run.

    Args:
        folder (`Path`): The run's folder.
        source (`Path`): File that the figures come from.
        training (`dict[str, Curve]`): Figures of training batches, by name.
        evaluation (`dict[str, dict[str, Curve]]`):
            Figures of each evaluation set; of a single set without a name, under `"evaluation"`.
        distributions (`dict[str, dict[str, list[Distribution]]]`):
            Histograms of each set, by name, in the order of the run.
        samples (`list[Sample]`): Samples of the last evaluation of each set.
        settings (`dict[str, Any]`): The trainer's `trl_dpo_ext.json`; empty if there is none.
        seconds (`float` or `None`): How long the training took; `None` until it ends.
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

    def curves(self, figure: str) -> dict[str, Curve]:
        """A figure's curves with a finite value, by where they were taken: `"training"` or the evaluation set."""
        everywhere = {"training": self.training} | self.evaluation
        return {
            where: names[figure] for where, names in everywhere.items() if figure in names and names[figure].finite()
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
        FileNotFoundError: If there is no such folder, or no figure in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    notes: list[str] = []
    source, lines = _figure_lines(folder, notes)
    run = RunData(folder, source, notes=notes)
    _add_figures(run, lines)
    if not run.training and not run.evaluation:
        raise FileNotFoundError(f"{source} holds no figures yet: none was logged.")
    _add_distributions(run)
    _add_samples(run)
    _add_settings(run)
    return run


def find_runs(folder: str | Path) -> list[Path]:
    """The folders of runs at most two levels below `folder`."""
    logs = [found for depth in ("*", "*/*") for found in Path(folder).glob(f"{depth}/{FIGURES_FILE}")]
    states = [found for depth in ("*", "*/*") for found in Path(folder).glob(f"{depth}/{TRAINER_STATE}")]
    folders = {log.parents[1] for log in logs} | {
        state.parents[1] if state.parent.name.startswith("checkpoint-") else state.parent for state in states
    }
    return sorted(folders - {Path(folder)})


def _figure_lines(folder: Path, notes: list[str]) -> tuple[Path, list[tuple[str, dict[str, Any]]]]:
    # The file that has the figures, and its lines as (where, line)
    path = folder / FIGURES_FILE
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
        f"{folder} holds no figures of a run: no line in {FIGURES_FILE}, no {TRAINER_STATE}, no checkpoint with one."
    )


def _with_checkpoints(folder: Path) -> Iterator[Path]:
    # The folder, and its checkpoints from the newest on: of a run that was killed the newest may be broken
    yield folder
    if any(folder.glob("checkpoint-*")):
        from trl_dpo_ext.trainers.checkpoint_files import checkpoints_of  # takes seconds

        yield from checkpoints_of(folder)


def _json_lines(path: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    # Objects of a JSON Lines file; what is no object is noted
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
                notes.append(f"{where} is not whole (a run that was killed while writing?): left out.")
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


def _split_name(name: str) -> tuple[str | None, str] | None:
    # `eval_hh_rewards/chosen` is of the prefix `eval_hh`; `None` for a name that is no figure of ours
    found = _NAME.fullmatch(name)
    return (found["prefix"], found["figure"]) if found else None


def _set_of(prefix: str) -> str:
    name = "evaluation" if prefix == "eval" else prefix.removeprefix("eval_")
    return prefix if name == "training" else name  # a set of that name is not the training


def _add_figures(run: RunData, lines: list[tuple[str, dict[str, Any]]]) -> None:
    for (_, before), (where, line) in pairwise(lines):
        if line["step"] < before["step"]:
            run.notes.append(
                f"{where} goes back from update {before['step']:,} to {line['step']:,} (a resumed run, or another in "
                "the same folder): of what was logged twice for an update, the last is drawn."
            )
    found: dict[tuple[str | None, str], dict[int, float]] = {}
    for where, line in lines:
        if "train_runtime" in line:  # the totals at the end
            if _is_number(line["train_runtime"]) and 0 <= line["train_runtime"] < _LARGEST_SECONDS:
                run.seconds = float(line["train_runtime"])
            else:
                run.notes.append(f"{where} has no time in `train_runtime`: left out.")
        # Every evaluation logs its runtime, which tells its prefix even when a custom metric is named like a figure
        prefixes = [name.removesuffix("_runtime") for name in line if name.endswith("_runtime")]
        totals = "train_runtime" in line  # and the figures of the last window
        for name, value in line.items():
            split = _split_name(name)
            if split is None or not (value is None or _is_number(value)):
                continue
            prefix, _ = split
            is_evaluation = not totals and (prefix in prefixes if prefixes else (f"{prefix}_").startswith("eval_"))
            if prefix is None or is_evaluation:
                found.setdefault(split, {})[line["step"]] = math.nan if value is None else _drawn(value)
    for (prefix, figure), points in found.items():
        steps = sorted(points)
        curve = Curve(steps, [points[step] for step in steps])
        names = run.training if prefix is None else run.evaluation.setdefault(_set_of(prefix), {})
        names[figure] = curve
        if broken := [step for step in steps if not math.isfinite(points[step])]:
            name = figure if prefix is None else f"{prefix}_{figure}"
            run.notes.append(f"`{name}` is not finite at {len(broken):,} updates (crosses), the first {broken[0]:,}.")


def _parse(text: str) -> Any:
    # Python reads whole numbers of any size, which are no floats then
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < _DIGITS else float(digits))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _drawn(value: float) -> float:
    # Axes overflow long before floats do
    return float(value) if abs(value) <= _LARGEST else math.copysign(math.inf, value)


def _add_distributions(run: RunData) -> None:
    found: dict[tuple[str, str], dict[int, Distribution]] = {}
    for where, line in _json_lines(run.folder / DISTRIBUTIONS_FILE, run.notes):
        split = _split_name(str(line.get("name")))
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
            run.notes.append(f"{where} is no histogram of n counts between n + 1 edges: left out.")
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
    for where, line in _json_lines(run.folder / SAMPLES_FILE, run.notes):
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
            run.notes.append(f"{where} is no sample, see its {', '.join(f'`{name}`' for name in wrong)}: left out.")
            continue
        sample = Sample(**(parts | {"name": _set_of(parts["name"])}))
        found.setdefault(sample.name, []).append(sample)
    for samples in found.values():
        run.samples += [sample for sample in samples if sample.step == samples[-1].step]


def _add_settings(run: RunData) -> None:
    # Beside the weights: in the folder after `save_model`, in a checkpoint before
    for path in (place / SETTINGS_FILE for place in _with_checkpoints(run.folder)):
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
