"""A run that is killed anywhere, also within a write, ends as the uninterrupted one once it has been resumed."""

import json
from pathlib import Path

import forked
import pytest


KINDS = ["pairs", "lora_cached", "rankings", "experts_grouped", "epochs"]
EVERY = 53  # points; of each three, before, within and after a write in turn


@pytest.mark.slow
def test_killed_runs_end_as_the_uninterrupted_one(llama_folder: str, tmp_path: Path) -> None:
    command = [str(Path(__file__).with_name("kill_case.py")), "--model", llama_folder]
    command += ["--out", str(tmp_path), "--every", str(EVERY)]
    command += [word for kind in KINDS for word in ("--kind", kind)]
    program = forked.start(command, tmp_path / "log")
    assert program.wait(600) == 0, program.output[-3000:]
    results = [json.loads(line) for line in program.output.splitlines() if line.startswith('{"kind"')]
    assert [(result["kind"], result["wrong"]) for result in results] == [(kind, {}) for kind in KINDS]
    assert all(result["tried"] >= 3 and result["points"] > 100 for result in results)
