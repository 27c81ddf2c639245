"""
Trains and evaluates on the cases in `cases/`, on one process or on several.

    python run_case.py --model FOLDER --out FOLDER --case NAME ...
    torchrun --nproc_per_node 2 run_case.py --model FOLDER --out FOLDER --reuse FOLDER_OF_ONE_PROCESS --case NAME ...

Everything is computed in float64 (`closeness.in_float64`) but for `ragged_float32`.

Each process writes `NAME.rank0.json`, `NAME.rank1.json`, ...: what the case returned, or its traceback; the main
process also writes the weights after a training, `NAME.safetensors`. An exception ends the launch as it ends a user's
script: once one of the processes has failed, the others do not fit together with it any more.

`test_two_processes.py`, `test_zero.py` and `test_two_machines.py` start it and compare what 1 and 2 processes wrote.
"""

import argparse
import json
import os
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

from import_costs import after_imports, before_imports  # noqa: E402


before_imports()

import torch  # noqa: E402
from cases import CASES, IN_FLOAT32, ZERO  # noqa: E402
from closeness import in_float64  # noqa: E402
from launch import Launch  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", action="append", required=True, choices=list(CASES))
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reuse", type=Path)
    given = parser.parse_args()

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    after_imports()
    rank, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if set(given.case) & set(ZERO):
        # On a CPU accelerate starts torch's process group and not DeepSpeed's beside it
        from deepspeed import comm

        comm.init_distributed("gloo", auto_mpi_discovery=False)
    for name in given.case:
        folder = given.out / name
        folder.mkdir(parents=True, exist_ok=True)
        launch = Launch(num_processes, rank, given.model, given.out, folder, given.reuse or given.out)
        start = time.perf_counter()
        result = {}
        try:
            with nullcontext() if name in IN_FLOAT32 else in_float64():
                result = CASES[name](launch)
        except BaseException:
            result = {"traceback": traceback.format_exc()}
            raise
        finally:
            result["seconds"] = time.perf_counter() - start
            (given.out / f"{name}.rank{rank}.json").write_text(json.dumps(result))
    if num_processes > 1:
        # A process that ends with its group still open is aborted now and then, by gloo's threads
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
