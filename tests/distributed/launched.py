"""
What launches of `run_case.py` wrote, and how two of them are compared.

The rows of an update are the same and its micro-batches smaller, so sums are rounded in another order and nothing else
may differ. That is computed in float64 (`closeness`), and once in float32.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from closeness import EXACT, assert_within_rounding, same
from safetensors.numpy import load_file


RUN_CASE = Path(__file__).with_name("run_case.py")
# All cases take about a minute, a failure about 15 s; a launch that hangs ends here, on a busy machine, too
LAUNCH_SECONDS = 900
FAILURE_SECONDS = 300

TIMINGS = re.compile(r"runtime|_per_second|total_flos|^seconds$")
# HF counts epochs in micro-batches, and a run's mean loss from where it was resumed
_NOT_OURS = re.compile(r"^epoch$|^train_loss$")


@dataclass
class Launched:
    """
    What a launch wrote.

    Args:
        out (`Path`): Its folder.
        num_processes (`int`): Number of processes.
        log (`dict`): Output of a launch that failed, by the case it failed in.
    """

    out: Path
    num_processes: int
    log: dict[str, str]

    def result(self, name: str, rank: int = 0) -> dict[str, Any]:
        path = self.out / f"{name}.rank{rank}.json"
        result = json.loads(path.read_text()) if path.is_file() else {"traceback": "(wrote nothing)"}
        if name in self.log or "traceback" in result:
            pytest.fail(
                f"{name} failed on {self.num_processes} process(es). Rank {rank}: {result.get('traceback')}\n"
                f"End of the launch's output:\n{self.log.get(name, '')[-3000:]}",
                pytrace=False,
            )
        return result

    def weights(self, name: str) -> dict[str, np.ndarray]:
        return load_file(self.out / f"{name}.safetensors")


def start(
    num_processes: int, model: str, out: Path, cases: list[str], reuse: Path | None = None, *, seconds: int
) -> tuple[list[int], str]:
    """Runs cases in one launch. Returns the exit statuses, -9 if killed after `seconds`, and what was printed."""
    words = [str(RUN_CASE), "--model", model, "--out", str(out)]
    words += [word for name in cases for word in ("--case", name)]
    words += [] if reuse is None else ["--reuse", str(reuse)]
    programs = forked.start_ranks(num_processes, words, out)
    return forked.wait_for_all(programs, seconds), "".join(program.output for program in programs)


def run_cases(num_processes: int, model: str, out: Path, cases: list[str], reuse: Path | None = None) -> Launched:
    """Runs what has not been run. A case that ends its launch is noted, and the next launch goes on behind it."""
    launched = Launched(out, num_processes, {})

    def is_finished(name: str) -> bool:
        paths = [out / f"{name}.rank{rank}.json" for rank in range(num_processes)]
        return all(path.is_file() and "traceback" not in json.loads(path.read_text()) for path in paths)

    left = [name for name in cases if not is_finished(name)]
    while left:
        statuses, log = start(num_processes, model, out, left, reuse, seconds=LAUNCH_SECONDS)
        left = [name for name in left if not is_finished(name)]
        assert left or not any(statuses), f"all cases are done, and the launch ended with {statuses}: {log[-3000:]}"
        if left:
            launched.log[left.pop(0)] = log
    return launched


def weights_distance(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
    assert one.keys() == two.keys()
    return float(np.sqrt(sum(np.square(one[name].astype(float) - two[name]).sum() for name in one)))


def assert_same_entries(ones: list[dict[str, Any]], twos: list[dict[str, Any]]) -> None:
    """Same figures in two lists of logged entries, to what float64 allows."""
    assert len(ones) == len(twos), f"{len(ones)} entries and {len(twos)}"
    for one, two in zip(ones, twos, strict=True):
        assert one.keys() == two.keys(), one.keys() ^ two.keys()
        for name, value in one.items():
            if not TIMINGS.search(name) and not _NOT_OURS.search(name):
                assert two[name] == same(value), name


def assert_same_training(
    one: Launched, name: str, two: Launched, other: str | None = None, *, part: str | None = None, without: str = ""
) -> None:
    """Same figures (but the one `without`) in every log entry and same final weights, of one case and another."""
    other = other or name
    ones, twos = one.result(name), two.result(other)
    ones = ones[part] if part else ones
    ones["history"] = [{key: entry[key] for key in entry if key != without} for entry in ones["history"]]
    assert ones["travelled"] > 1e-3, "the weights hardly moved"
    assert_same_entries(ones["history"], twos["history"])
    distance = weights_distance(one.weights(f"{name}_{part}" if part else name), two.weights(other))
    assert distance <= EXACT * ones["travelled"], distance / ones["travelled"]


def changes(model: str, weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """What a training changed of the weights in the folder `model`."""
    start = load_file(Path(model, "model.safetensors"))
    assert weights.keys() == start.keys()
    return {name: torch.tensor(weights[name].astype(float) - start[name]) for name in start}


def assert_float32_training(one: Launched, model: str, weights: dict[str, np.ndarray]) -> None:
    """Weights after `ragged` in float32 are as near to float64 as those of one process are."""
    trusted, exact = (changes(model, one.weights(name)) for name in ("ragged_float32", "ragged"))
    assert_within_rounding(changes(model, weights), trusted, exact)


def assert_exact_means(metrics: dict[str, float], prefix: str, predictions: list[list[float]]) -> None:
    """Logged figures are means over the rows that `predict` scored."""
    chosen, rejected = np.array(predictions, dtype=float).T
    margins = chosen - rejected
    expected = {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": (margins > 0).mean(),
    }
    found = {name: metrics[f"{prefix}_{name}"] for name in expected}
    assert found == same(expected)


def assert_same_samples(ones: list[dict[str, Any]], twos: list[dict[str, Any]]) -> None:
    """Same answers in two `samples.jsonl`, with the same rewards to what float64 allows."""
    assert len(ones) == len(twos) > 0
    for one, two in zip(ones, twos, strict=True):
        for name, value in one.items():
            assert two[name] == (same(value) if isinstance(value, float) else value), name


def assert_file_missed_by_the_second(launched: Launched) -> None:
    """The command ends on both processes with the message of the second."""
    (first, other) = (launched.result("misses_a_file", rank=rank) for rank in range(2))
    path = launched.out / "misses_a_file" / "rows_of_rank1.jsonl"
    message = re.escape(f"`dataset_name`: {path} does not exist.")
    assert first["status"] == other["status"] == 2
    assert re.search(rf"trl-dpo-ext dpo: {message}", other["said"])
    assert re.search(rf"trl-dpo-ext dpo: Process 1 of 2 \(on .*\) failed with ValueError: {message}", first["said"])


def sigmoid_loss(predictions: list[list[float]]) -> float:
    chosen, rejected = np.array(predictions, dtype=float).T
    return float(np.logaddexp(0.0, rejected - chosen).mean())
