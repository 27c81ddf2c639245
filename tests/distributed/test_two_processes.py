"""
One process and two processes give the same numbers.

`run_case.py` runs all cases once on one process and once on two, with gloo. The tests compare what they wrote;
`test_two_machines.py` and `test_recipes.py` start processes by `torchrun` and `accelerate launch`.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import FATAL, TRAININGS, cases_for
from closeness import EXACT, same
from launch import RESUME_AFTER
from launched import (
    FAILURE_SECONDS,
    TIMINGS,
    Launched,
    assert_exact_means,
    assert_file_missed_by_the_second,
    assert_float32_training,
    assert_same_entries,
    assert_same_samples,
    assert_same_training,
    run_cases,
    sigmoid_loss,
    start,
    weights_distance,
)
from safetensors.numpy import load_file


pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@dataclass
class Both:
    """The two launches of all cases."""

    model: str
    folder: Path
    on_one_process: Callable[[list[str]], Launched]

    @cached_property
    def one(self) -> Launched:
        return self.on_one_process(cases_for(1))

    @cached_property
    def two(self) -> Launched:
        return run_cases(2, self.model, self.folder, cases_for(2), reuse=self.one.out)


@pytest.fixture(scope="module")
def both(
    llama_folder: str,
    tmp_path_factory: pytest.TempPathFactory,
    on_one_process: Callable[[list[str]], Launched],
) -> Both:
    return Both(llama_folder, tmp_path_factory.mktemp("two_processes"), on_one_process)


# Training


@pytest.mark.parametrize("name", TRAININGS)
def test_training(both: Both, name: str) -> None:
    assert_same_training(both.one, name, both.two)


def test_float32(both: Both) -> None:
    assert_float32_training(both.one, both.model, both.two.weights("ragged_float32"))


def test_a_difference_is_seen(both: Both) -> None:
    """Every comparison fails for a run that went further by 1e-4 of its way."""
    ones, further = both.one.weights("ragged"), 1.0 + 1e-4
    start = load_file(Path(both.model, "model.safetensors"))
    distance = weights_distance(ones, {name: start[name] + further * (ones[name] - start[name]) for name in ones})
    assert distance > 1e5 * EXACT * both.one.result("ragged")["travelled"]
    found = both.two.weights("ragged_float32")
    with pytest.raises(AssertionError, match="from float64"):
        assert_float32_training(
            both.one, both.model, {name: start[name] + further * (found[name] - start[name]) for name in found}
        )
    history = both.one.result("ragged")["history"]
    with pytest.raises(AssertionError, match="loss"):
        assert_same_entries(history, [entry | {"loss": entry.get("loss", 0.0) * further} for entry in history])


def test_micro_batches_are_fewer(both: Both) -> None:
    assert [launched.result("accumulates")["micro_batches"] for launched in (both.one, both.two)] == [4, 2]


def test_best_checkpoint(both: Both) -> None:
    one, two = both.one.result("keeps_best"), both.two.result("keeps_best")
    steps = {f"checkpoint-{e['step']}": e["eval_rewards/chosen"] for e in one["history"] if "eval_loss" in e}
    assert one["best"] == two["best"] == min(steps, key=steps.__getitem__)
    assert_exact_means(two["metrics"], "eval", two["predictions"])
    assert two["metrics"]["eval_rewards/chosen"] == same(min(steps.values()))


FAILED_BY_ONE = {"refused_row", "refused_in_one_copy", "misses_a_file"}  # which tells the other


@pytest.mark.parametrize("name", sorted(set(cases_for(2)) - FAILED_BY_ONE))
def test_all_processes_report_the_same(both: Both, name: str) -> None:
    """Metrics that decide (best model, early stopping) and weights are bit for bit the same on both."""

    def without_timings(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_timings(entry) for key, entry in value.items() if not TIMINGS.search(key)}
        return [without_timings(entry) for entry in value] if isinstance(value, list) else value

    assert without_timings(both.two.result(name, rank=1)) == without_timings(both.two.result(name))


# Resuming


@pytest.mark.parametrize("name", ["resumes_ragged", "resumes_experts"])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_resumed_is_straight(both: Both, name: str, num_processes: int) -> None:
    launched = both.one if num_processes == 1 else both.two
    assert_same_training(launched, name, launched, part="straight")


def test_resumed(both: Both) -> None:
    assert_same_training(both.one, "resumes_ragged", both.two)


def test_checkpoint_state(both: Both) -> None:
    one, two = both.one.result("resumes_ragged"), both.two.result("resumes_ragged")
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
    assert two["predictions"] == same(np.array(one["predictions"]))
    assert two["label_ids"] == [[0, 1]] * len(two["predictions"])


@pytest.mark.parametrize("name", ["unlikelihood", "preferred_ft"])
def test_evaluation_of_baselines(both: Both, name: str) -> None:
    assert_same_entries([both.one.result(name)["metrics"]], [both.two.result(name)["metrics"]])


def test_evaluation_of_rankings(both: Both) -> None:
    one, two = both.one.result("ranks"), both.two.result("ranks")
    assert_same_entries([one["metrics"], one["test_metrics"]], [two["metrics"], two["test_metrics"]])
    assert two["label_ids"] == one["label_ids"]
    assert len(two["predictions"]) == 9 and {len(row) for row in two["predictions"]} == {6}
    for ours, theirs in zip(two["predictions"], one["predictions"], strict=True):
        assert ours == same(theirs, nan_ok=True)
    # In the order of the rows: row i of the set has 2 + 2 i mod 5 completions
    assert [sum(rank >= 0 for rank in row) for row in two["label_ids"]] == [2 + 2 * i % 5 for i in range(40, 49)]


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
            assert metrics[f"{prefix}_loss"] == same(expected)


def test_cached_reference_evaluates_like_the_live_one(both: Both) -> None:
    live, cached = both.one.result("evaluates"), both.two.result("cached_evaluates")
    metrics = {name: value for name, value in live["metrics"].items() if name in cached["metrics"]}
    assert_same_entries([metrics], [cached["metrics"]])


def test_logps_are_means_over_rows(both: Both) -> None:
    result = both.two.result("reference_free")
    logps = np.array(result["predictions"]).mean(axis=0) / result["beta"]
    found = [result["metrics"][f"eval_logps/{side}"] for side in ("chosen", "rejected")]
    assert found == same(logps.tolist())


def test_compute_metrics_sees_each_row_once(both: Both) -> None:
    for launched in (both.one, both.two):
        result = launched.result("evaluates")
        assert result["metrics"]["eval_rows"] == 9
        assert result["metrics"]["eval_own_margin"] == same(result["metrics"]["eval_rewards/margins"])


def test_every_set_keeps_its_metrics(both: Both) -> None:
    one, two = both.one.result("evaluates_sets"), both.two.result("evaluates_sets")
    assert_same_entries([one["metrics"]], [two["metrics"]])
    for name, rows in (("long", 9), ("short", 5)):
        assert len(two["predictions"][name]) == rows
        assert_exact_means(two["metrics"], f"eval_{name}", two["predictions"][name])
        assert two["metrics"][f"eval_{name}_loss"] == same(sigmoid_loss(two["predictions"][name]))
    assert two["metrics"]["eval_long_rewards/margins"] != two["metrics"]["eval_short_rewards/margins"]


def test_distributions_are_of_all_rows(both: Both) -> None:
    one, two = (launched.result("evaluates_sets") for launched in (both.one, both.two))
    ones, twos = one["run_log"]["distributions"], two["run_log"]["distributions"]
    assert [line["name"] for line in ones] == [line["name"] for line in twos]
    assert len(ones) == 8
    for line, other in zip(ones, twos, strict=True):
        assert sum(other["counts"]) == (9 if "_long_" in line["name"] else 5)
        assert other["edges"] == same(line["edges"])
        assert sum(abs(np.subtract(line["counts"], other["counts"]))) <= 2  # one on the edge of a bin


def test_samples_are_of_the_first_prompts(both: Both) -> None:
    one, two = (launched.result("evaluates_sets")["run_log"]["samples"] for launched in (both.one, both.two))
    assert len(two) == 6  # three of each set, though two processes do not divide them
    assert_same_samples(one, two)
    # The policy and the other model that is its reference say different things, and each prefers its own
    assert all(line["policy_reward"] > 0 > line["reference_reward"] for line in one + two)


def test_samples_after_a_training(both: Both) -> None:
    one, two = (launched.result("samples")["run_log"]["samples"] for launched in (both.one, both.two))
    assert any(line["policy"] != line["reference"] for line in one)
    assert_same_samples(one, two)


def test_predictions_keep_the_order_of_the_rows(both: Both) -> None:
    one, two = both.one.result("predicts"), both.two.result("predicts")
    for name, rows in (("seven", 7), ("one", 1)):
        predictions = np.array(two[name]["predictions"])
        assert predictions.shape == (rows, 2)
        assert predictions == same(np.array(one[name]["predictions"]))
        assert two[name]["label_ids"] == [[0, 1]] * rows
        assert_exact_means(two[name]["metrics"], "test", predictions)
    assert two["one"]["predictions"][0] == same(two["seven"]["predictions"][0])
    assert len({tuple(row) for row in two["seven"]["predictions"]}) == 7


def test_streaming_evaluation(both: Both) -> None:
    """The figures of the same rows in a data set that is not streamed."""
    expected = both.one.result("evaluates")["metrics"]
    metrics = both.two.result("streams_evaluates")["metrics"]
    assert_same_entries([both.one.result("streams_evaluates")["metrics"]], [metrics])
    assert metrics["eval_loss"] == same(expected["eval_loss"])


# Cached reference


@pytest.mark.parametrize("num_processes", [1, 2])
def test_cached_reference_trains_like_the_live_one(both: Both, num_processes: int) -> None:
    launched = both.one if num_processes == 1 else both.two
    # Of a reference that is cached only sums over tokens are known
    assert_same_training(both.one, "ragged", launched, "cached", without="kl_per_token")


def test_cached_logps(both: Both) -> None:
    one, two = (np.array(launched.result("cached")["logps"]) for launched in (both.one, both.two))
    assert one.shape == (2, 11)
    assert two == same(one)


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
    assert result["metrics"]["eval_loss"] == same(sigmoid_loss(result["predictions"]))
    assert_same_samples(both.one.result("samples")["run_log"]["samples"], result["run_log"]["samples"])


def test_sharded_adapter(both: Both) -> None:
    assert both.two.result("sharded_lora")["shards"] == FSDP | {"policy": [29, 29]}
    assert_same_training(both.one, "lora", both.two, "sharded_lora")


def test_sharded_rankings_in_parts(both: Both) -> None:
    assert both.two.result("sharded_ranks")["shards"] == FSDP | {"policy": [21, 21], "reference": [21, 21]}
    assert_same_training(both.one, "ranks", both.two, "sharded_ranks")


def test_sharded_reinforcement_learning(both: Both) -> None:
    shards = both.two.result("sharded_rloo")["shards"]
    assert shards == {"distributed_type": "FSDP", "policy": [21, 21], "reference": [21, 21]}
    assert_same_training(both.two, "rloo_samples", both.two, "sharded_rloo")


@pytest.mark.parametrize("name", ["ranks_varlen", "sharded_varlen"])
def test_flash_attention(both: Both, name: str) -> None:
    result = both.two.result(name)
    assert result["uses_kernel"]
    assert "computed once (FlashAttention of torch, packed)" in str(result)
    assert_same_training(both.one, "ranks", both.two, name)


def test_parts_are_the_whole(both: Both) -> None:
    assert_same_training(both.one, "ranks", both.one, "ranks_in_parts")


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
        assert "Cause: adapter initialization" in result["message"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none_in_a_row", "`rejected` in row 7 of the train dataset is None"),
        ("empty_prompt", "`prompt` in row 7 of the train dataset is empty"),
    ],
)
def test_bad_data_ends_the_launch(llama_folder: str, tmp_path: Path, name: str, message: str) -> None:
    assert name in FATAL
    statuses, log = start(2, llama_folder, tmp_path, [name], seconds=FAILURE_SECONDS)
    assert statuses == [1, 1], log[-3000:]
    assert log.count(f"ValueError: {message}") >= 2


def test_a_bad_row_of_both_is_refused_by_the_first(both: Both) -> None:
    first, other = (both.two.result("refused_row", rank=rank)["message"] for rank in range(2))
    assert first.startswith("`prompt` in row 7 of the train dataset is empty")
    assert other == f"Process 0 of 2 (on {socket.gethostname()}) failed with ValueError: {first}"


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "`prompt` in row 7 of the train dataset is empty"),
        ("ranking", "`ranks` in row 7 of the train dataset has 1 entries but `completions` has 7"),
        ("template", "The chat template cannot render `prompt` in row 0 of the train dataset: no such role"),
    ],
)
def test_bad_data_of_one_process_is_refused_by_all(both: Both, kind: str, message: str, failing: int) -> None:
    told = [both.two.result("refused_in_one_copy", rank=rank)["messages"][f"{kind}, {failing}"] for rank in range(2)]
    assert told[failing].startswith(message)
    where = f"Process {failing} of 2 (on {socket.gethostname()})"
    assert told[1 - failing] == f"{where} failed with ValueError: {told[failing]}"


def test_file_that_is_missing_for_one_process(both: Both) -> None:
    assert_file_missed_by_the_second(both.two)


@pytest.mark.parametrize(("failing", "counts"), [(0, "11 on process 0, 12 on"), (1, "12 on process 0, 11 on")])
def test_copies_of_other_lengths_are_refused_by_all(both: Both, failing: int, counts: str) -> None:
    for rank in range(2):
        message = both.two.result("refused_in_one_copy", rank=rank)["messages"][f"one row less, {failing}"]
        expected = "The processes do not have the same number of usable rows of the train dataset"
        assert message.startswith(f"{expected}: {counts} process 1.")
