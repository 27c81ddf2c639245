"""
DeepSpeed ZeRO on two CPU processes gives the numbers of one process.

DeepSpeed itself, with its gloo back end: weights are in parts (`ds_id`), gathered for each layer and put back.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from cases import ZERO
from closeness import same
from launched import (
    FAILURE_SECONDS,
    LAUNCH_SECONDS,
    Launched,
    assert_exact_means,
    assert_float32_training,
    assert_same_samples,
    assert_same_training,
    sigmoid_loss,
    start,
)
from safetensors.numpy import load_file
from tiny import preference_rows


pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ONE = [
    "ragged",
    "ragged_float32",
    "evaluates",
    "samples",
    "accumulates",
    "ragged_accumulates",
    "lora",
    "cached",
    "ranks",
    "resumes_ragged",
    "rloo",
]
STAGE = {stage: Path(__file__).parents[2] / "recipes" / "accelerate" / f"zero{stage}.yaml" for stage in (2, 3)}
PROMPTS = "computed once (attention by segments, packed)"
WHOLE = {"distributed_type": "DEEPSPEED", "prompts": PROMPTS, "policy": [0, 21], "reference": [0, 21]}
IN_PARTS = WHOLE | {"policy": [21, 21], "reference": [21, 21]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("deepspeed")
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def one(folder: Path, on_one_process: Callable[[list[str]], Launched]) -> Launched:
    return on_one_process(ONE)


@pytest.fixture(scope="module")
def zero(folder: Path, llama_folder: str, one: Launched) -> Launched:
    """Two processes under ZeRO."""
    statuses, log = start(2, llama_folder, folder / "zero", ZERO, one.out, seconds=LAUNCH_SECONDS)
    assert statuses == [0, 0], log[-3000:]
    return Launched(folder / "zero", 2, {})


def test_stage_2(one: Launched, zero: Launched) -> None:
    assert zero.result("zero2_accumulates")["parts"] == WHOLE
    assert_same_training(one, "accumulates", zero, "zero2_accumulates")


@pytest.mark.parametrize(("plain", "name"), [("ragged", "zero3"), ("ragged_accumulates", "zero3_accumulates")])
def test_stage_3(one: Launched, zero: Launched, plain: str, name: str) -> None:
    assert zero.result(name)["parts"] == IN_PARTS
    assert_same_training(one, plain, zero, name)


def test_evaluation(one: Launched, zero: Launched) -> None:
    result = zero.result("zero3")
    assert_exact_means(result["metrics"], "eval", result["predictions"])
    assert result["metrics"]["eval_loss"] == same(sigmoid_loss(result["predictions"]))
    assert_same_samples(one.result("samples")["run_log"]["samples"], result["run_log"]["samples"])


def test_whole_weights_are_saved(zero: Launched) -> None:
    saved = load_file(zero.out / "zero3" / "saved" / "model.safetensors")
    trained = zero.weights("zero3")
    assert saved.keys() <= trained.keys()
    for name, weights in saved.items():
        assert (weights == trained[name]).all(), name


def test_adapter(one: Launched, zero: Launched) -> None:
    """Gradient checkpointing is on; the base is in parts too."""
    assert zero.result("zero3_lora")["parts"] == {
        "distributed_type": "DEEPSPEED",
        "prompts": PROMPTS,
        "policy": [29, 29],
    }
    assert_same_training(one, "lora", zero, "zero3_lora")


def test_rankings_in_parts_of_two(one: Launched, zero: Launched) -> None:
    assert zero.result("zero3_ranks")["parts"] == IN_PARTS
    assert_same_training(one, "ranks", zero, "zero3_ranks")


def test_reinforcement_learning(one: Launched, zero: Launched) -> None:
    assert zero.result("zero3_rloo")["parts"] == {
        "distributed_type": "DEEPSPEED",
        "policy": [21, 21],
        "reference": [21, 21],
    }
    assert_same_training(one, "rloo", zero, "zero3_rloo")


def test_parts_need_gradient_checkpointing(zero: Launched) -> None:
    for rank in range(2):
        message = zero.result("zero3_in_parts", rank=rank)["message"]
        assert message.startswith(
            "`completions_per_forward=2` under DeepSpeed ZeRO-3 needs `gradient_checkpointing=True`"
        )


def test_cached_reference(one: Launched, zero: Launched) -> None:
    """The hash of weights in parts is that of the whole ones, so the file has the name it has on one process."""
    assert_same_training(one, "cached", zero, "zero3_cached")
    main, other = (zero.result("zero3_cached", rank=rank) for rank in range(2))
    assert list(main["files"]) == list(one.result("cached")["files"])
    assert main["logps"] == other["logps"]


def test_file_of_one_process_is_read(one: Launched, zero: Launched) -> None:
    assert_same_training(one, "cached", zero, "zero2_cached")
    for rank in range(2):
        result = zero.result("zero2_cached", rank=rank)
        assert result["files_after"] == result["files"]


def test_resume(one: Launched, zero: Launched) -> None:
    """A run that goes on from its own checkpoint ends with the same weights as one that was not interrupted."""
    assert_same_training(one, "resumes_ragged", zero, "zero3_resumes", part="straight")
    resumed = zero.result("zero3_resumes")
    state = resumed["state"] | {"processes": 1}
    assert state == one.result("resumes_ragged")["state"]  # the reference with its source and hash, too
    assert resumed["weights"] == resumed["straight"]["weights"]


@pytest.mark.parametrize("stage", [2, 3])
def test_accelerate_launch(one: Launched, llama_folder: str, tmp_path: Path, stage: int) -> None:
    """`ragged` by the command at the head of `zero2.yaml` and `zero3.yaml`."""
    preference_rows(11).to_json(tmp_path / "rows.jsonl")
    launcher = [forked.LAUNCHER, "accelerate-launch", "--config_file", str(STAGE[stage]), "--num_processes", "2"]
    launcher += ["-m", "trl_dpo_ext.cli", "dpo"]
    options = {
        "model_name_or_path": llama_folder,
        "dataset_name": tmp_path / "rows.jsonl",
        "output_dir": tmp_path / "run",
        "preset": "paper",
        "use_cpu": "true",
        "per_device_train_batch_size": 2,
        "global_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "gradient_checkpointing": "false",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
    }
    command = [*launcher, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    env = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    program = forked.start(command, tmp_path / "log", env=env)
    assert program.wait(FAILURE_SECONDS) == 0, program.output[-3000:]
    assert_float32_training(one, llama_folder, load_file(tmp_path / "run" / "model.safetensors"))


def test_imports_read_nothing_of_a_launch(folder: Path, tmp_path: Path) -> None:
    """So a fork, which does not import again, does what a new interpreter does in the environment of a launch."""
    script = "import json, os, forked_imports; print(json.dumps([list(os.environ), list(forked_imports.READ)]))"
    (tmp_path / "script.py").write_text(script)
    launcher = [forked.LAUNCHER, "accelerate-launch", "--config_file", str(STAGE[3]), "--num_processes", "1"]
    program = forked.start([*launcher, str(tmp_path / "script.py")], tmp_path / "log")
    assert program.wait(FAILURE_SECONDS) == 0, program.output[-3000:]
    environment, read = map(set, json.loads(program.output.splitlines()[-1]))
    launch = environment - set(os.environ)
    assert {"ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE", "RANK", "WORLD_SIZE"} <= launch
    assert "HF_HOME" in read
    assert launch & read <= {"PYTHONPATH"}  # a fork is given the paths of modules
