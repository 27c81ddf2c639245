"""The check for GPUs: its sections on a CPU, deadlines, verdicts, and the table that the README takes from it."""

import json
import math
import time
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from flash_on_cpu import flash_on_cpu

from benchmarks.gpu_check.device_tests import read_report
from benchmarks.gpu_check.kernels import check_kernels, errors_of
from benchmarks.gpu_check.layouts import layout_of
from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.profile import by_kind
from benchmarks.gpu_check.questions import QUESTIONS, TARGETS
from benchmarks.gpu_check.sections import Section, run_sections
from benchmarks.gpu_check.steps import PLAN
from benchmarks.gpu_check.verdicts import answer
from benchmarks.page_table import table
from trl_dpo_ext.shared_prompt.cascade import cascade, cascade_of
from trl_dpo_ext.shared_prompt.segments import segments_of
from trl_dpo_ext.shared_prompt.varlen import varlen


ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
DRY = Machine(dry=True, folder="")


@pytest.mark.slow
def test_sections_run_to_their_end(tmp_path: Path):
    """All but the one that compiles and the one that runs `tests/gpu`, which are too long for a test."""
    sections = ["environment", "kernels", "small model", "masks", "attention", "fixed costs", "steps", "profile"]
    words = ["-m", "benchmarks", "gpu-check", "--dry", "--output", str(tmp_path), "--only", *sections]
    program = forked.start(words, tmp_path / "log", cwd=ROOT)
    assert program.wait(600) == 1, program.output[-3000:]  # without the tests it is not shown to be correct
    assert "Not shown to be correct: device tests." in program.output
    found = json.loads((tmp_path / "gpu-check-dry-run.json").read_text())
    assert found["dry"] and not found["passed"]
    assert {name: section["status"] for name, section in found["sections"].items()} == dict.fromkeys(sections, "done")
    assert found["sections"]["kernels"]["bad"] == found["sections"]["small model"]["bad"] == []
    rows = {(row["shape"], row["contender"]): row for row in found["sections"]["steps"]["rows"]}
    assert rows.keys() == set(PLAN[:9]) | {("ultrafeedback", "trl cached")}
    assert all(row["first_loss_ok"] for row in rows.values())
    assert "FlashAttention" in rows["hh", "ours cached varlen"]["path"]
    assert not found["sections"]["steps"]["left_out"]
    # Nothing that a CPU does is said of a GPU
    assert {target["verdict"] for target in found["targets"]} == {"unknown"}


@pytest.mark.parametrize("fault", [{"upper_left": True}, {"window_shift": 1}], ids=str)
def test_a_wrong_kernel_does_not_pass(fault):
    found: dict[str, Any] = {}
    with flash_on_cpu(**fault):
        check_kernels(DRY, found)
    assert not found["passed"]
    windows = "window 5" if "window_shift" in fault else "gathered keys"
    assert [name for name in found["bad"] if windows in name]
    sections = {"kernels": found}
    by_text = {verdict["question"]: verdict["verdict"] for verdict in answer(QUESTIONS, sections, dry=True)}
    assert by_text["Its windows are exact"] == "no"
    expected = "yes" if "window_shift" in fault else "no"
    assert by_text["FlashAttention aligns the last query with the last key"] == expected


def test_what_is_not_written_is_wrong():
    layout = layout_of([(14, [9, 12, 1])], CPU)

    def unwritten(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        first = torch.arange(len(query))[:, None, None] == 0
        return (query + key.repeat_interleave(2, 1) + value.repeat_interleave(2, 1)).masked_fill(first, torch.nan)

    errors = errors_of(unwritten, layout, heads=4, key_heads=2, size=8)
    assert errors["out"]["ours"] == math.inf
    assert 0 < errors["out"]["mask"] < 0.01


def test_two_merged_calls_are_exact():
    layout = layout_of([(14, [9, 12, 1]), (7, [3, 8]), (1, [4, 2]), (5, [4])], CPU)
    generator = torch.Generator().manual_seed(0)
    tokens = layout.tokens.numel()
    states = [
        torch.randn(tokens, heads, 8, dtype=torch.float64, generator=generator).requires_grad_() for heads in (4, 2, 2)
    ]
    weights = torch.randn(tokens, 4, 8, dtype=torch.float64, generator=generator)
    with flash_on_cpu():
        one, other = cascade(*states, cascade_of(layout)), varlen(*states, segments_of(layout))
        gradients = [torch.autograd.grad((out * weights).sum(), states) for out in (one, other)]
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_deadlines(tmp_path: Path):
    path = tmp_path / "found.json"
    seen = []

    def slow(machine: Machine, found: dict[str, Any]) -> None:
        found["before"] = 1
        time.sleep(5)
        found["after"] = 1

    def fails(machine: Machine, found: dict[str, Any]) -> None:
        found["before"] = 2
        raise ZeroDivisionError("no reason")

    def quick(machine: Machine, found: dict[str, Any]) -> None:
        seen.append(set(json.loads(path.read_text())["sections"]))  # what is in the file by now
        found["passed"] = True

    sections = [
        Section("slow", 1, slow),
        Section("fails", 10, fails),
        Section("quick", 10, quick),
        Section("absent", 10, quick, packages=("a_package_that_is_not_there", "torch")),
        Section("long", 100, quick),
    ]
    found = run_sections(sections, DRY, path, total=20, head={"card": "X"})
    assert found == json.loads(path.read_text())
    assert found["card"] == "X"
    parts = found["sections"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "slow": "out of time",
        "fails": "failed",
        "quick": "done",
        "absent": "skipped",
        "long": "skipped",
    }
    assert parts["slow"]["before"] == 1 and "after" not in parts["slow"] and parts["slow"]["seconds"] < 3
    assert parts["fails"]["before"] == 2 and "ZeroDivisionError: no reason" in parts["fails"]["reason"]
    assert parts["absent"]["reason"] == "not installed: a_package_that_is_not_there"
    assert parts["long"]["reason"].endswith("s left, and it may take 100 s")
    assert seen == [{"slow", "fails"}]


def row(shape: str, contender: str, seconds: float, **columns: Any) -> dict[str, Any]:
    return {"shape": shape, "contender": contender, "seconds": seconds, **columns}


def test_verdicts():
    sections = {
        "masks": {"cudnn on": {"kernel": "cudnn", "first_ms": 60.0, "second_ms": 20.0}},
        "attention": {
            "status": "done",
            "hh": {"separate rows": 3.0, "gathered keys": 2.0},
            "long-eight": {"separate rows": 9.0, "gathered keys": 3.0, "cascade": 2.5, "flex": 4.0},
        },
        "layer": {
            "float32 weights, autocast": {"eager": 30.0, "products": 10.0, "compiled": 16.0, "products_tflops": 600.0}
        },
        "steps": {
            "rows": [
                row("hh", "trl cached", 0.9, synchronizations=28, speedup_over_trl=1.0),
                row(
                    *("hh", "ours cached varlen", 0.25),
                    synchronizations=1,
                    speedup_over_trl=3.6,
                    speedup_over_packed_rows=1.3,
                    mfu_percent=34.0,
                ),
                row("hh", "ours cached compiled", 0.2, speedup_over_trl=4.5, mfu_percent=41.0),
                row("long-eight", "ours cached varlen", 0.4, speedup_over_packed_rows=3.7),
            ]
        },
        "device tests": {
            "outcomes": {
                "tests.gpu.test_waiting::one": "passed",
                "tests.gpu.test_waiting::other": "failed: waits",
                "tests.gpu.test_trainers::one": "passed",
                "tests.gpu.test_trainers::other": "skipped: no such path",
                "tests.gpu.test_qlora::one": "skipped: bitsandbytes",
            }
        },
    }
    given = answer(QUESTIONS, sections, dry=False) + answer(TARGETS, sections, dry=False)
    found = {verdict["question"]: (verdict["verdict"], verdict["number"]) for verdict in given}
    assert found["`sdpa` gives a mask to cuDNN"] == ("yes", "cudnn")
    new_shape = "A new shape takes cuDNN twice as long as a known one, so that TRL is to be shown without it, too"
    assert found[new_shape] == ("yes", 3.0)
    assert found["Attention of shared prompts is faster than that of separate rows on every shape"] == ("yes", 1.5)
    # 16 layers that would save half a millisecond each, of 400
    assert found["Two merged calls would save 3 % of a step at K = 8"] == ("no", pytest.approx(0.02))
    assert found["Flex attention is faster on some shape"] == ("no", 0.75)
    assert found["Attention takes at most 5 % of a layer on short rows"] == ("no", pytest.approx(2 / 30))
    assert found["Matrix products of ten thousand tokens reach 650 TFLOP/s"] == ("no", 600.0)
    # (16 - 10) / (30 - 10)
    compiled = "A compiled layer keeps at most 0.35 of what an eager one takes besides matrix products"
    assert found[compiled] == ("yes", pytest.approx(0.3))
    assert found["Ours waits for the GPU at most once a micro-batch"] == ("yes", 1)
    assert found["TRL waits twenty times a micro-batch or more"] == ("yes", 28)
    assert found["A step does not wait for the GPU"] == ("no", False)
    assert found["Every trainer trains as on separate rows"] == ("yes", True)
    assert found["QLoRA trains"] == ("unknown", None)
    assert found["hh: 3 times as fast as TRL"] == ("yes", 4.5)
    assert found["hh: 1.35 times as fast as packed rows"] == ("no", 1.3)
    assert found["1024/128, K = 8: 3.5 times as fast as packed rows"] == ("yes", 3.7)
    assert found["4096/512: 1.6 times as fast as packed rows"] == ("unknown", None)
    assert found["hh: MFU of 40 % with compiled layers"] == ("yes", 41.0)
    assert found["hh: MFU of 33 % without"] == ("yes", 34.0)


def test_nothing_found_is_unknown():
    verdicts = answer(QUESTIONS + TARGETS, {}, dry=False)
    assert {verdict["verdict"] for verdict in verdicts} == {"unknown"}
    texts = [verdict["question"] for verdict in verdicts]
    assert len(set(texts)) == len(texts)


def test_report_of_pytest():
    text = """<testsuites><testsuite>
        <testcase classname="tests.gpu.test_a" name="one"/>
        <testcase classname="tests.gpu.test_a" name="two"><failure message="assert 1 == 2&#10;more"/></testcase>
        <testcase classname="tests.gpu.test_a" name="three"><skipped message="no GPU"/></testcase>
        <testcase classname="tests.gpu.test_a" name="four"><error message="cannot build"/></testcase>
    </testsuite></testsuites>"""
    assert read_report(text) == {
        "tests.gpu.test_a::one": "passed",
        "tests.gpu.test_a::two": "failed: assert 1 == 2",
        "tests.gpu.test_a::three": "skipped: no GPU",
        "tests.gpu.test_a::four": "failed: cannot build",
    }


def test_kernels_by_kind():
    kernels = [
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT", 5.0),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16>", 1.0),
        ("void pytorch_flash::flash_fwd_splitkv_kernel<...>", 2.0),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", 3.0),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", 0.5),
        ("_forward_kernel", 0.25),
        ("Memcpy HtoD (Pinned -> Device)", 0.125),
    ]
    assert by_kind(kernels) == {
        "products": 6.0,
        "attention": 2.0,
        "elementwise": 3.0,
        "optimizer": 0.5,
        "head": 0.25,
        "copies": 0.125,
    }


def test_the_readme_takes_its_gpu_table_from_a_check(tmp_path: Path):
    common = {
        **{"date": "2026-01-02", "machine": "GPU X", "torch": "2.11", "trl": "1.16", "model": "llama-1b"},
        **{"tuning": "full", "lengths": "lognormal, sigma 0.7", "prompt_tokens": 160, "answer_tokens": 80},
        **{"completions": 2, "flop_limit": 1.43},
    }
    rows = [
        row("hh", "trl cached", 0.9, **common),
        row("hh", "ours cached packed", 0.35, **common),
        row(
            *("hh", "ours cached varlen", 0.25),
            **common,
            speedup_over_trl=3.6,
            speedup_over_packed_rows=1.4,
            mfu_percent=34.0,
        ),
    ]
    found = {"dry": True, "sections": {"steps": {"rows": rows}}}
    path = tmp_path / "gpu-check-gpu-x.json"
    path.write_text(json.dumps(found))
    assert table(tmp_path) == "On a GPU: not measured.\n"
    path.write_text(json.dumps(found | {"dry": False}))
    assert (
        table(tmp_path)
        == """\
GPU X, `llama-1b`, full fine-tuning, TRL 1.16, torch 2.11, 2026-01-02, bf16, the reference cached; milliseconds of an \
optimizer step:

| shape | K | TRL | packed rows | ours | x TRL | x packed rows | limit | MFU % |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| 160 + K x 80, lognormal, sigma 0.7 | 2 | 900 | 350 | 250 | 3.6 | 1.4 | 1.43 | 34 |
"""
    )
