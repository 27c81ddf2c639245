"""
The command that runs the check.

    python -m benchmarks gpu-check                    # on a machine with a GPU, in at most eight minutes
    python -m benchmarks gpu-check --dry              # every section to its end, at tiny sizes on a CPU
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.questions import QUESTIONS, TARGETS
from benchmarks.gpu_check.sections import Found, Section, run_sections
from benchmarks.gpu_check.verdicts import answer


__all__ = ["SECTIONS", "main"]

_ROOT = Path(__file__).parents[2]
_TOTAL = 470  # seconds; imports come before
_TRL = ("trl", "datasets")


def _section(name: str, limit: int, function: str, packages: tuple[str, ...] = ()) -> Section:
    # Its module is imported when it runs: a package that is not there then costs this section only
    module = name.replace(" ", "_")

    def run(machine: Machine, found: Found) -> None:
        getattr(import_module(f"benchmarks.gpu_check.{module}"), function)(machine, found)

    return Section(name, limit, run, packages)


SECTIONS = [
    _section("environment", 5, "check_environment"),
    _section("kernels", 20, "check_kernels"),
    _section("small model", 40, "check_small_model", _TRL),
    _section("masks", 15, "check_masks"),
    _section("attention", 50, "measure_attention"),
    _section("layer", 50, "measure_layer"),
    _section("fixed costs", 10, "measure_fixed_costs"),
    _section("steps", 155, "measure_steps", _TRL),
    _section("profile", 25, "measure_profile", _TRL),
    _section("device tests", 100, "run_device_tests", (*_TRL, "pytest")),
]

# What must pass for an exit status of 0
_CORRECTNESS = ("kernels", "small model", "device tests")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Checks what needs a GPU.", prog="python -m benchmarks gpu-check")
    parser.add_argument("--dry", action="store_true", help="run every section at tiny sizes on a CPU")
    parser.add_argument("--only", nargs="+", metavar="SECTION", choices=[section.name for section in SECTIONS])
    parser.add_argument("--output", type=Path, default=_ROOT / "benchmarks" / "results", metavar="FOLDER")
    options = parser.parse_args(arguments)
    if not (options.dry or torch.cuda.is_available()):
        parser.error("torch finds no GPU here; `--dry` runs every section on a CPU, to see that it ends")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # A dry run measures nothing, and a CPU may be busy with more than it
    slack = 10 if options.dry else 1
    sections = [
        replace(section, limit=slack * section.limit)
        for section in SECTIONS
        if options.only is None or section.name in options.only
    ]
    with tempfile.TemporaryDirectory(prefix="trl_dpo_ext_gpu_check_") as folder, _kernels(options.dry):
        machine = Machine(options.dry, folder)
        path = options.output / f"gpu-check-{machine.file_name}.json"
        head = {"card": machine.name, "date": date.today().isoformat(), "dry": options.dry}
        results = run_sections(sections, machine, path, slack * _TOTAL, head)
    found = results["sections"]
    results["questions"] = answer(QUESTIONS, found, options.dry)
    results["targets"] = answer(TARGETS, found, options.dry)
    results["passed"] = all(found.get(name, {}).get("passed") is True for name in _CORRECTNESS)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(report(results) + f"\n{path}\n")
    return 0 if results["passed"] else 1


def report(results: Found) -> str:
    """What was found, a line for each section and each verdict."""
    lines = [f"{results['card']}, {results['date']}"]
    if results["dry"]:
        lines.append("The kernels are imitated: no verdict holds for a GPU.")
    for name, found in results["sections"].items():
        reason = found.get("reason", "").strip().splitlines()
        lines.append(f"  {name}: {found['status']}" + (f" ({reason[-1]})" if reason else ""))
    for verdict in results["questions"] + results["targets"]:
        number = verdict["number"]
        shown = f"{number:.3g}" if isinstance(number, float) else number
        lines.append(f"  {verdict['verdict']:8}{verdict['question']}" + ("" if number is None else f" [{shown}]"))
    failed = [name for name in _CORRECTNESS if results["sections"].get(name, {}).get("passed") is not True]
    lines.append("Correct." if results["passed"] else f"Not shown to be correct: {', '.join(failed)}.")
    return "\n".join(lines)


@contextmanager
def _kernels(dry: bool) -> Iterator[None]:
    # On a CPU torch has no FlashAttention; the tests have it
    if not dry:
        yield
        return
    sys.path.insert(0, str(_ROOT / "tests"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sizes are tiny
    try:
        from flash_on_cpu import flash_on_cpu

        with flash_on_cpu():
            yield
    finally:
        torch.set_num_threads(threads)
        sys.path.remove(str(_ROOT / "tests"))
