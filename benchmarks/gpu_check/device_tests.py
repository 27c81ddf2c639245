"""The tests that need a GPU, `tests/gpu`, in a process of their own."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.sections import Found


__all__ = ["read_report", "run_device_tests"]

_TESTS = Path(__file__).parents[2] / "tests" / "gpu"

# The longest last
_FILES = ("first_steps", "waiting", "trainers", "qlora", "memory")

# Seconds for the tests, and for pytest to write down what has run if they take longer
_LIMIT, _TO_WRITE = 85, 10


def run_device_tests(machine: Machine, found: Found) -> None:
    """Puts the outcome of each test into `found`, and `passed`. In a dry run those of the first file, on a CPU."""
    files = [str(_TESTS / f"test_{name}.py") for name in _FILES[: machine.size(len(_FILES), 1)]]
    which = "not gpu" if machine.dry else "gpu"
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.xml", Path(folder) / "log"
        options = [
            "-q",
            "--disable-warnings",
            "-p",
            "no:cacheprovider",
            "-m",
            which,
            f"--junitxml={report}",
            f"--basetemp={folder}/tests",
        ]
        with log.open("w") as output:
            program = subprocess.Popen(
                [sys.executable, "-m", "pytest", *options, *files],
                cwd=_TESTS.parents[1],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                program.wait(_LIMIT)
            except subprocess.TimeoutExpired:
                program.send_signal(signal.SIGINT)
                program.wait(_TO_WRITE)
            finally:
                program.kill()
        found["last_lines"] = log.read_text(errors="replace")[-1500:]
        found["outcomes"] = read_report(report.read_text(encoding="utf-8")) if report.exists() else {}
    outcomes = found["outcomes"].values()
    found["passed"] = program.returncode == 0 and "passed" in outcomes


def read_report(text: str) -> dict[str, str]:
    """Outcome of each test of a JUnit report: `passed`, or `failed` or `skipped` with the first line of its reason."""
    outcomes = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        outcome = "passed"
        for kind, name in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            if (element := case.find(kind)) is not None:
                outcome = f"{name}: {element.get('message', '').splitlines()[0]}"
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return outcomes
