"""
One process and two processes give the same numbers.

`run_case.py` runs all cases once on one process and once on two, started by `torchrun`, with gloo: on a CPU
`accelerate launch` starts one process unless told `--multi_gpu`. The tests compare what they wrote. The rows of
an update are the same and its micro-batches half as large, so sums are rounded in another order and nothing else may
differ.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_case import FATAL, RESUME_AFTER, cases_for
from safetensors.numpy import load_file


pytestmark = [pytest.mark.distributed, pytest.mark.slow]

RUN_CASE = Path(__file__).with_name("run_case.py")
LAUNCH_SECONDS = 240  # all cases take about a minute, a failure about 15 s; a launch that hangs ends here
FAILURE_SECONDS = 100

# What float32 allows, as a share of the size of what a figure is computed from (see `_size`).
TOLERANCE = 1e-6
# Distance of the final weights, as a share of the distance they travelled in training. An update divides gradients by
# their own size (RMSprop), so entries near 0 are as far off as float32 lets them.
WEIGHTS_TOLERANCE = 1e-5
# Beta times two hundred nats, of which the rewards of a row are a difference
REWARD_SIZE = 20

_TIMINGS = re.compile(r"runtime|_per_second|total_flos|^seconds$")
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


@dataclass
class Both:
    """The two launches of all cases."""

    model: str
    folder: Path

    @cached_property
    def one(self) -> Launched:
        return run_cases(1, self.model, self.folder / "one")

    @cached_property
    def two(self) -> Launched:
        return run_cases(2, self.model, self.folder / "two", reuse=self.one.out)


def start(
    num_processes: int, model: str, out: Path, cases: list[str], reuse: Path | None = None, *, seconds: int
) -> tuple[int, str]:
    """Runs cases in one launch. Returns its exit status, -9 if it was killed after `seconds`, and its output."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable]
    if num_processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(num_processes)]
        command += ["--master_addr", "127.0.0.1", "--master_port", port]
    command += [str(RUN_CASE), "--model", model, "--out", str(out)]
    command += [word for name in cases for word in ("--case", name)]
    command += [] if reuse is None else ["--reuse", str(reuse)]
    with (out / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        log.seek(0)
        return status, log.read()


def run_cases(num_processes: int, model: str, out: Path, reuse: Path | None = None) -> Launched:
    """Runs all cases; a case that ends its launch is noted, and another launch goes on behind it."""
    launched = Launched(out, num_processes, {})
    left = cases_for(num_processes)
    while left:
        _, log = start(num_processes, model, out, left, reuse, seconds=LAUNCH_SECONDS)
        left = [name for name in left if not _finished(launched, name)]
        if left:
            launched.log[left.pop(0)] = log
    return launched


def _finished(launched: Launched, name: str) -> bool:
    paths = [launched.out / f"{name}.rank{rank}.json" for rank in range(launched.num_processes)]
    return all(path.is_file() and "traceback" not in json.loads(path.read_text()) for path in paths)


@pytest.fixture(scope="module")
def both(llama_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(llama_folder, tmp_path_factory.mktemp("processes"))


# Comparing


def deviations(ones: list[dict[str, Any]], twos: list[dict[str, Any]], beta: float = 0.1) -> dict[str, float]:
    """
    The largest deviation of each figure in two lists of logged entries, as a share of its size.

    Raises:
        AssertionError: If an entry lacks a figure of the other.
    """
    assert len(ones) == len(twos), f"{len(ones)} entries and {len(twos)}"
    found: dict[str, float] = {}
    largest_grad_norm = max((entry.get("grad_norm", 0.0) for entry in ones), default=0.0)
    for one, two in zip(ones, twos, strict=True):
        assert one.keys() == two.keys(), one.keys() ^ two.keys()
        for name, value in one.items():
            if _TIMINGS.search(name) or _NOT_OURS.search(name):
                continue
            size = largest_grad_norm if name == "grad_norm" else _size(name, one, beta)
            deviation = abs(value - two[name]) / size if value != two[name] else 0.0
            found[name] = float(np.maximum(found.get(name, 0.0), deviation))  # keeps NaN
    return found


def _size(name: str, entry: dict[str, Any], beta: float) -> float:
    # A reward is beta times the difference of two log-probabilities, a sum of a hundred nats each
    if found := re.match(r"(.*)(?:rewards/(?:chosen|rejected|margins\w*|rank_\d+)|own_margin)$", name):
        sides = (f"{found[1]}logps/{side}" for side in ("chosen", "rejected"))
        return beta * max(abs(entry[side]) for side in sides if side in entry)
    if found := re.match(r"(.*logps/(?:chosen|rejected))_drift$", name):  # a difference of two log-probabilities
        return abs(entry[found[1]])
    if found := re.match(r"(.*rewards/)length_correlation$", name):  # as exact as rewards are beside their spread
        return max(1.0, _size(f"{found[1]}margins", entry, beta) / abs(entry[f"{found[1]}margins"]))
    if name.endswith("kl_per_token"):  # grows as the exponential of token log-probabilities of up to ten nats
        return 10 * max(1.0, abs(entry[name]))
    # Losses are functions of rewards, of size log 2 at the start; logits are of size 1 and their mean is near 0
    if name.endswith(("loss", "order_probabilities", "gradient_weight", "calibration_error")) or "logits/" in name:
        return max(1.0, abs(entry[name]))
    return abs(entry[name]) or 1.0


def weights_distance(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
    assert one.keys() == two.keys()
    return float(np.sqrt(sum(np.square(one[name].astype(float) - two[name]).sum() for name in one)))


def assert_same_entries(ones: list[dict[str, Any]], twos: list[dict[str, Any]]) -> None:
    wrong = {name: value for name, value in deviations(ones, twos).items() if not value <= TOLERANCE}
    assert not wrong, wrong


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
    assert distance <= WEIGHTS_TOLERANCE * ones["travelled"], distance / ones["travelled"]


def assert_same_rewards(ones: list[list[float]], twos: list[list[float]]) -> None:
    assert np.array(twos) == pytest.approx(np.array(ones), rel=TOLERANCE, abs=TOLERANCE * REWARD_SIZE)


def assert_exact_means(metrics: dict[str, float], prefix: str, predictions: list[list[float]]) -> None:
    """Logged figures are means over the rows that `predict` scored."""
    chosen, rejected = np.array(predictions, dtype=float).T
    margins = chosen - rejected
    size = max(1.0, np.abs(chosen).max(), np.abs(rejected).max())
    expected = {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": (margins > 0).mean(),
    }
    found = {name: metrics[f"{prefix}_{name}"] for name in expected}
    assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE * size)


def sigmoid_loss(predictions: list[list[float]]) -> float:
    chosen, rejected = np.array(predictions, dtype=float).T
    return float(np.logaddexp(0.0, rejected - chosen).mean())


# Training

TRAININGS = {
    "ranks": "rankings of 2 to 9 completions, a repeated row in the last update",
    "ranks_in_parts": "two completions in memory at a time",
    "ranks_cached": "the same with a cached reference",
    "divides": "sizes that divide, with an evaluation in between",
    "accumulates": "half the micro-batches",
    "shuffles": "random order, 2 epochs",
    "ragged": "a repeated row in the last update",
    "ragged_accumulates": "a repeated row in the last micro-batch",
    "idle": "an update without a row for the second process",
    "idle_accumulates": "a micro-batch without a row for the second process",
    "one_row": "a single row",
    "drops_last": "the last update dropped",
    "chat_instance": "chat data, a copy in memory as reference",
    "from_file": "a file, and one cache of `datasets`",
    "trl_config": "a plain `trl.DPOConfig`",
    "smoothed": "conservative DPO",
    "reference_free": "no reference",
    "synced_reference": "a reference that follows",
    "lora": "adapter off as reference",
    "trained_adapter": "a frozen copy of the adapter as reference",
    "unlikelihood": "the unlikelihood baseline",
    "preferred_ft": "a mean over the tokens of an update",
    "vision": "images",
    "streams": "a streaming data set",
    "keeps_best": "the best checkpoint loaded at the end",
    "cached": "a cached reference",
    "brought": "a reference in the data",
    "hinge": "TRL's own loss",
    "vision_ipo": "TRL's own loss on images",
}


@pytest.mark.parametrize("name", TRAININGS)
def test_training(both: Both, name: str) -> None:
    assert_same_training(both.one, name, both.two)


def test_micro_batches_are_fewer(both: Both) -> None:
    assert [launched.result("accumulates")["micro_batches"] for launched in (both.one, both.two)] == [4, 2]


def test_best_checkpoint(both: Both) -> None:
    one, two = both.one.result("keeps_best"), both.two.result("keeps_best")
    steps = {f"checkpoint-{e['step']}": e["eval_rewards/chosen"] for e in one["history"] if "eval_loss" in e}
    assert one["best"] == two["best"] == min(steps, key=steps.__getitem__)
    assert_exact_means(two["metrics"], "eval", two["predictions"])
    assert two["metrics"]["eval_rewards/chosen"] == pytest.approx(min(steps.values()), abs=1e-5)


# In one case a process fails by itself
@pytest.mark.parametrize("name", sorted(set(cases_for(2)) - {"refused_in_one_copy"}))
def test_all_processes_report_the_same(both: Both, name: str) -> None:
    """Metrics that decide (best model, early stopping) and weights are bit for bit the same on both."""

    def without_timings(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_timings(entry) for key, entry in value.items() if not _TIMINGS.search(key)}
        return [without_timings(entry) for entry in value] if isinstance(value, list) else value

    assert without_timings(both.two.result(name, rank=1)) == without_timings(both.two.result(name))


# Resuming


@pytest.mark.parametrize("name", ["resumes", "resumes_ragged", "resumes_experts"])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_resumed_is_straight(both: Both, name: str, num_processes: int) -> None:
    launched = both.one if num_processes == 1 else both.two
    assert_same_training(launched, name, launched, part="straight")


@pytest.mark.parametrize("name", ["resumes", "resumes_ragged"])
def test_resumed(both: Both, name: str) -> None:
    assert_same_training(both.one, name, both.two)


def test_checkpoint_state(both: Both) -> None:
    one, two = both.one.result("resumes"), both.two.result("resumes")
    assert one["state"].pop("processes") == 1
    assert two["state"].pop("processes") == 2
    assert one["state"] == two["state"]
    assert two["state"]["num_tokens"] == two["straight"]["history"][RESUME_AFTER - 1]["num_tokens"]


# Evaluation and prediction


@pytest.mark.parametrize(
    "name", ["evaluates", "cached_evaluates", "hinge_evaluates", "reference_free", "lora", "vision", "vision_ipo"]
)
def test_evaluation(both: Both, name: str) -> None:
    one, two = both.one.result(name), both.two.result(name)
    assert_same_entries([one["metrics"], one["test_metrics"]], [two["metrics"], two["test_metrics"]])
    assert two["predictions"] == pytest.approx(
        np.array(one["predictions"]), rel=TOLERANCE, abs=REWARD_SIZE * TOLERANCE
    )
    assert two["label_ids"] == [[0, 1]] * len(two["predictions"])


@pytest.mark.parametrize("name", ["unlikelihood", "preferred_ft"])
def test_evaluation_of_baselines(both: Both, name: str) -> None:
    assert_same_entries([both.one.result(name)["metrics"]], [both.two.result(name)["metrics"]])


def test_evaluation_of_rankings(both: Both) -> None:
    one, two = both.one.result("ranks"), both.two.result("ranks")
    assert_same_entries([one["metrics"], one["test_metrics"]], [two["metrics"], two["test_metrics"]])
    assert two["label_ids"] == one["label_ids"]
    assert len(two["predictions"]) == 9 and {len(row) for row in two["predictions"]} == {9}
    for ours, theirs in zip(two["predictions"], one["predictions"], strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE * REWARD_SIZE, nan_ok=True)
    # In the order of the rows: row i of the set has 2 + 3 i mod 8 completions
    assert [sum(rank >= 0 for rank in row) for row in two["label_ids"]] == [2 + 3 * i % 8 for i in range(40, 49)]


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize(
    "name", ["evaluates", "cached_evaluates", "hinge_evaluates", "reference_free", "lora", "vision", "vision_ipo"]
)
def test_evaluated_figures_are_means_over_rows(both: Both, name: str, num_processes: int) -> None:
    result = (both.one if num_processes == 1 else both.two).result(name)
    predictions = result["predictions"]
    for metrics, prefix in ((result["metrics"], "eval"), (result["test_metrics"], "test")):
        assert_exact_means(metrics, prefix, predictions)
        chosen, rejected = np.array(predictions, dtype=float).T
        expected = {
            "hinge_evaluates": np.maximum(0.0, 1.0 - (chosen - rejected)).mean(),
            "vision_ipo": None,  # of log-probabilities per token, which `predict` does not show
        }.get(name, sigmoid_loss(predictions))
        if expected is not None:
            assert metrics[f"{prefix}_loss"] == pytest.approx(expected, rel=TOLERANCE)


def test_cached_reference_evaluates_like_the_live_one(both: Both) -> None:
    live, cached = both.one.result("evaluates"), both.two.result("cached_evaluates")
    metrics = {name: value for name, value in live["metrics"].items() if name in cached["metrics"]}
    assert_same_entries([metrics], [cached["metrics"]])


def test_logps_are_means_over_rows(both: Both) -> None:
    result = both.two.result("reference_free")
    logps = np.array(result["predictions"]).mean(axis=0) / result["beta"]
    found = [result["metrics"][f"eval_logps/{side}"] for side in ("chosen", "rejected")]
    assert found == pytest.approx(logps.tolist(), rel=TOLERANCE)


def test_compute_metrics_sees_each_row_once(both: Both) -> None:
    for launched in (both.one, both.two):
        result = launched.result("evaluates")
        assert result["metrics"]["eval_rows"] == 9
        assert result["metrics"]["eval_own_margin"] == pytest.approx(
            result["metrics"]["eval_rewards/margins"], rel=TOLERANCE, abs=TOLERANCE
        )


def test_every_set_keeps_its_metrics(both: Both) -> None:
    one, two = both.one.result("evaluates_sets"), both.two.result("evaluates_sets")
    assert_same_entries([one["metrics"]], [two["metrics"]])
    for name, rows in (("long", 9), ("short", 5)):
        assert len(two["predictions"][name]) == rows
        assert_exact_means(two["metrics"], f"eval_{name}", two["predictions"][name])
        assert two["metrics"][f"eval_{name}_loss"] == pytest.approx(
            sigmoid_loss(two["predictions"][name]), rel=TOLERANCE
        )
    assert two["metrics"]["eval_long_rewards/margins"] != two["metrics"]["eval_short_rewards/margins"]


def test_distributions_are_of_all_rows(both: Both) -> None:
    one, two = (launched.result("evaluates_sets") for launched in (both.one, both.two))
    ones, twos = one["run_log"]["distributions"], two["run_log"]["distributions"]
    assert [line["name"] for line in ones] == [line["name"] for line in twos]
    assert len(ones) == 8
    for line, other in zip(ones, twos, strict=True):
        assert sum(other["counts"]) == (9 if "_long_" in line["name"] else 5)
        assert other["edges"] == pytest.approx(line["edges"], rel=1e-5, abs=1e-5)
        assert sum(abs(np.subtract(line["counts"], other["counts"]))) <= 2  # one on the edge of a bin


def test_samples_are_of_the_first_prompts(both: Both) -> None:
    one, two = (launched.result("evaluates_sets")["run_log"]["samples"] for launched in (both.one, both.two))
    assert len(two) == 6  # three of each set, though two processes do not divide them
    assert [(line["name"], line["prompt"]) for line in one] == [(line["name"], line["prompt"]) for line in two]
    # The policy and the other model that is its reference say different things, and each prefers its own
    assert all(line["policy_reward"] > 0 > line["reference_reward"] for line in one + two)


def test_predictions_keep_the_order_of_the_rows(both: Both) -> None:
    one, two = both.one.result("predicts"), both.two.result("predicts")
    for name, rows in (("seven", 7), ("one", 1)):
        predictions = np.array(two[name]["predictions"])
        assert predictions.shape == (rows, 2)
        assert predictions == pytest.approx(
            np.array(one[name]["predictions"]), rel=TOLERANCE, abs=REWARD_SIZE * TOLERANCE
        )
        assert two[name]["label_ids"] == [[0, 1]] * rows
        assert_exact_means(two[name]["metrics"], "test", predictions)
    assert two["one"]["predictions"][0] == pytest.approx(
        two["seven"]["predictions"][0], rel=TOLERANCE, abs=REWARD_SIZE * TOLERANCE
    )
    assert len({tuple(row) for row in two["seven"]["predictions"]}) == 7


def test_streaming_evaluation(both: Both) -> None:
    """The figures of the same rows in a data set that is not streamed."""
    expected = both.one.result("evaluates")["metrics"]
    metrics = both.two.result("streams_evaluates")["metrics"]
    assert_same_entries([both.one.result("streams_evaluates")["metrics"]], [metrics])
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"], rel=TOLERANCE)


# Cached reference


@pytest.mark.parametrize("num_processes", [1, 2])
def test_cached_reference_trains_like_the_live_one(both: Both, num_processes: int) -> None:
    launched = both.one if num_processes == 1 else both.two
    # Of a reference that is cached only sums over tokens are known
    assert_same_training(both.one, "ragged", launched, "cached", without="kl_per_token")


def test_cached_logps(both: Both) -> None:
    one, two = (np.array(launched.result("cached")["logps"]) for launched in (both.one, both.two))
    assert one.shape == (2, 11)
    assert two == pytest.approx(one, rel=TOLERANCE)


def test_cache_file_is_written_once(both: Both) -> None:
    names = []
    for launched in (both.one, both.two):
        result = launched.result("cached")
        assert len(result["files"]) == 1
        assert result["files_after_second"] == result["files"]
        names += result["files"]
    assert names[0] == names[1], "the key depends on the number of processes"


def test_two_processes_read_the_file_of_one(both: Both) -> None:
    result = both.two.result("cached_before")
    assert len(result["files"]) == 1
    assert result["files_after_second"] == result["files"]
    assert_same_training(both.one, "cached", both.two, "cached_before")


# Sharded weights

FSDP = {"distributed_type": "FSDP", "prompts": "computed once (attention by segments, packed)"}


def test_sharded_training(both: Both) -> None:
    result = both.two.result("sharded")
    assert result["shards"] == FSDP | {"policy": [21, 21], "reference": [21, 21]}
    assert_same_training(both.one, "ragged", both.two, "sharded")
    assert_exact_means(result["metrics"], "eval", result["predictions"])
    assert result["metrics"]["eval_loss"] == pytest.approx(sigmoid_loss(result["predictions"]), rel=TOLERANCE)
    samples = result["run_log"]["samples"]
    assert [line["name"] for line in samples] == ["eval"] * 3
    assert all(np.isfinite([line["policy_reward"], line["reference_reward"]]).all() for line in samples)


def test_sharded_adapter(both: Both) -> None:
    assert both.two.result("sharded_lora")["shards"] == FSDP | {"policy": [29, 29]}
    assert_same_training(both.one, "lora", both.two, "sharded_lora")


def test_sharded_rankings_in_parts(both: Both) -> None:
    assert both.two.result("sharded_ranks")["shards"] == FSDP | {"policy": [21, 21], "reference": [21, 21]}
    assert_same_training(both.one, "ranks", both.two, "sharded_ranks")


def test_parts_are_the_whole(both: Both) -> None:
    # Other shapes, so other sums: 1e-5, as between a shared prompt and separate rows
    whole, parts = both.one.result("ranks"), both.one.result("ranks_in_parts")
    wrong = {name: value for name, value in deviations(whole["history"], parts["history"]).items() if value > 1e-5}
    assert not wrong, wrong
    distance = weights_distance(both.one.weights("ranks"), both.one.weights("ranks_in_parts"))
    assert distance <= WEIGHTS_TOLERANCE * whole["travelled"]


# Failures


def test_nonfinite_loss_on_one_process_stops_all(both: Both) -> None:
    expected = both.one.result("nonfinite")
    assert expected["updates"] == 1
    assert expected["message"].startswith("Non-finite reference log-probabilities, losses in update 2")
    for rank in range(2):
        result = both.two.result("nonfinite", rank=rank)
        assert (result["updates"], result["message"]) == (1, expected["message"])


def test_wrong_reference_stops_all(both: Both) -> None:
    for launched, rank in ((both.one, 0), (both.two, 0), (both.two, 1)):
        result = launched.result("wrong_start", rank=rank)
        assert result["updates"] == 0
        assert "Cause: adapter initialisation" in result["message"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none_in_a_row", "`rejected` in row 7 of the train dataset is None"),
        ("empty_prompt", "`prompt` in row 7 of the train dataset is empty"),
    ],
)
def test_bad_data_ends_the_launch(llama_folder: str, tmp_path: Path, name: str, message: str) -> None:
    assert name in FATAL
    status, log = start(2, llama_folder, tmp_path, [name], seconds=FAILURE_SECONDS)
    assert status == 1, log[-3000:]
    assert f"ValueError: {message}" in log


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "`prompt` in row 7 of the train dataset is empty"),
        ("ranking", "`ranks` in row 7 of the train dataset has 1 entries but `completions` has 7"),
        ("template", "The chat template cannot render row 0 of the train dataset: no such role"),
    ],
)
def test_bad_data_of_one_process_is_refused_by_all(both: Both, kind: str, message: str, failing: int) -> None:
    told = [both.two.result("refused_in_one_copy", rank=rank)["messages"][f"{kind}, {failing}"] for rank in range(2)]
    assert told[failing].startswith(message)
    where = f"Process {failing} of 2 (on {socket.gethostname()})"
    assert told[1 - failing] == f"{where} failed with ValueError: {told[failing]}"


@pytest.mark.parametrize(("failing", "counts"), [(0, "11 on process 0, 12 on"), (1, "12 on process 0, 11 on")])
def test_copies_of_other_lengths_are_refused_by_all(both: Both, failing: int, counts: str) -> None:
    for rank in range(2):
        message = both.two.result("refused_in_one_copy", rank=rank)["messages"][f"one row less, {failing}"]
        expected = "The processes do not have the same number of usable rows of the train dataset"
        assert message.startswith(f"{expected}: {counts} process 1.")
