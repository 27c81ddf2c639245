"""
Runs the numeric tests as if on processors with other vector instructions, on one and on two threads.

    python tests/instruction_sets.py [PYTEST ARGUMENTS ...]

PyTorch, oneDNN and MKL each choose their kernels by what the processor has, and add up in another order in each. They
can be told to do with less, so one machine shows what others compute. Prints a line for each setting: the number of
tests that passed and failed, and the names of the latter.
"""

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path


ROOT = Path(__file__).parents[1]
NUMERIC = [
    "tests/exactness",
    "tests/parity",
    "tests/unit/test_closeness.py",
    "tests/unit/test_layouts.py",
    "tests/unit/test_logps.py",
    "tests/unit/test_batch_metrics.py",
    "tests/unit/test_varlen.py",
    "tests/integration/test_flash_paths.py",
    "tests/integration/test_metrics_log.py",
    "tests/integration/test_implicit_reward_model.py",
    "tests/integration/test_preferred_ft.py",
    "tests/integration/test_ranking.py",
    "tests/integration/test_reward_model_folders.py",
    "tests/integration/test_run_log.py",
    "tests/integration/test_same_numbers.py",
    "tests/integration/test_score_command.py",
    "tests/integration/test_shared_prompt.py",
    "tests/integration/test_shared_prompt_models.py",
    "tests/integration/test_step_zero.py",
    "tests/integration/test_unlikelihood.py",
    "tests/distributed",
]
# ATen, oneDNN, MKL (which heeds it on Intel processors)
SETTINGS = [
    {},
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX", "MKL_ENABLE_INSTRUCTIONS": "AVX"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
]


def main() -> int:
    chosen = sys.argv[1:] or NUMERIC
    failed = 0
    for setting, threads in product(SETTINGS, (1, 2)):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE"]
        command += ["--numprocesses", "2", "--dist", "loadfile", *chosen]
        env = os.environ | setting | {"TEST_THREADS": str(threads)}
        output = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True).stdout
        names = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, flags=re.MULTILINE)
        failed += len(names) or "passed" not in output
        kernels = ", ".join(setting.values()) or "all that there are"
        sys.stdout.write(f"{kernels:24}  {threads} thread(s)  {output.strip().splitlines()[-1]}\n")
        sys.stdout.write("".join(f"    {name}\n" for name in names))
        sys.stdout.flush()
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
