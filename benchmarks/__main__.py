"""
Measures an optimizer step of TRL's `DPOTrainer`, of this package's trainers, and of plain next-token training.

    python -m benchmarks --size cpu                 # seconds
    python -m benchmarks --size cpu --memory        # peak memory
    python -m benchmarks --size gpu --shapes hh --contenders "trl cached" "ours cached varlen"
    python -m benchmarks --size tiny                # to see that it runs
    python -m benchmarks gpu-check                  # every check that needs a GPU, in eight minutes

Results go to `benchmarks/results/`; see `benchmarks/README.md`.
"""

# ruff: noqa: E402

import os
import sys


# Read when torch, `datasets` and `huggingface_hub` are imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait busily slow a shared machine down
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> int:
    if sys.argv[1:2] == ["gpu-check"]:  # which imports TRL only where it is installed
        from benchmarks.gpu_check.command import main as check

        return check(sys.argv[2:])
    from benchmarks.command import main as benchmark

    return benchmark(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
