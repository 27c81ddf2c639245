"""A run that is killed anywhere, also within a write, ends as the uninterrupted one once it has been resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


KINDS = ["pairs", "lora_cached", "rankings", "experts_grouped", "epochs"]
EVERY = 49  # points; of each three, before, within and after a write in turn


@pytest.mark.slow
def test_killed_runs_end_as_the_uninterrupted_one(llama_folder: str, tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("kill_case.py")), "--model", llama_folder]
    command += ["--out", str(tmp_path), "--every", str(EVERY)]
    command += [word for kind in KINDS for word in ("--kind", kind)]
    # Forked processes have no threads
    env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"kind"')]
    assert [(result["kind"], result["wrong"]) for result in results] == [(kind, {}) for kind in KINDS]
    assert all(result["tried"] >= 3 and result["points"] > 100 for result in results)
