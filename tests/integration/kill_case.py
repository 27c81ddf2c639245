"""
Trains, is killed at a given point, resumes, and compares with the run that was not interrupted.

    python kill_case.py --model FOLDER --out FOLDER --kind KIND [--kind KIND ...] [--every N]

Points are before, within (half is written, or removed) and after each write and removal, and at each update.
Starting Python, torch and TRL costs more than a run, and so does building a trainer: this process does both and forks
one for each run, which has a folder of its own. Prints a line of JSON a kind: how many points there are, how many were
tried, and what went wrong. `test_kills.py` starts it.
"""

import argparse
import functools
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[1]))

import peft.peft_model  # noqa: E402
import torch  # noqa: E402
import transformers.modeling_utils  # noqa: E402
from tiny import lora_config, preference_rows, ranking_rows, tiny_moe, tiny_tokenizer  # noqa: E402
from transformers import TrainerCallback, TrainerState  # noqa: E402

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer, RankingDPOConfig, RankingDPOTrainer  # noqa: E402
from trl_dpo_ext.run_log import RunLog  # noqa: E402
from trl_dpo_ext.trainers.checkpoints.checkpoint_files import checkpoints_of, fault_of  # noqa: E402
from trl_dpo_ext.trainers.logs.samples import SampleLog  # noqa: E402


Trainer = DPOPaperTrainer | RankingDPOTrainer


OPTIONS = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 4,
    "global_batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "logging_steps": 1,
    "max_steps": 3,  # of 2 an epoch
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "report_to": "none",
    "use_cpu": True,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
_TIMINGS = re.compile(r"runtime|_per_second|total_flos|train_loss")


class Points:
    """Counts the points of a run, and kills it at one of them."""

    def __init__(self, folder: Path, kill_at: int | None):
        self.folder = str(folder)
        self.kill_at = kill_at
        self.count = 0

    def reach(self) -> None:
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def around(self, owner: Any, name: str) -> None:
        """Makes a function that writes or removes a file a point before, within and after."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            named = (value for value in (*args, *kwargs.values()) if isinstance(value, (str, os.PathLike)))
            path = next((Path(value) for value in named if self.folder in os.path.abspath(value)), None)
            if path is None:
                return real(*args, **kwargs)
            self.reach()
            if self.count == self.kill_at and path.is_dir():
                for file in [file for file in sorted(path.rglob("*")) if file.is_file()][::2]:
                    file.unlink()
                self.reach()
            result = real(*args, **kwargs)
            if self.count == self.kill_at and path.is_file():
                os.truncate(path, path.stat().st_size // 2)
            self.reach()
            self.reach()
            return result

        setattr(owner, name, wrapped)


class AtUpdates(TrainerCallback):
    def __init__(self, points: Points):
        self.points = points

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.points.reach()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.points.reach()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.points.reach()


def make_trainer(kind: str, model: str) -> Trainer:
    options: dict[str, Any] = dict(OPTIONS)
    arguments: dict[str, Any] = {"train_dataset": preference_rows(7), "eval_dataset": preference_rows(3, start=30)}
    trainer_class, config_class, policy = DPOPaperTrainer, DPOPaperConfig, model
    if kind == "lora_cached":
        arguments["peft_config"] = lora_config(lora_dropout=0.1)
        options |= {"precompute_ref_log_probs": True, "ref_logps_cache_dir": "cache"}
    elif kind == "rankings":
        trainer_class, config_class = RankingDPOTrainer, RankingDPOConfig
        arguments |= {"train_dataset": ranking_rows(7, [3, 4]), "eval_dataset": ranking_rows(3, [3, 4], start=40)}
    elif kind == "experts_grouped":
        policy, arguments["processing_class"] = tiny_moe(), tiny_tokenizer()
        options |= {"train_sampling_strategy": "group_by_length", "log_samples": 1}
        options |= {"eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    elif kind == "epochs":
        options |= {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch", "save_steps": 2}
    return trainer_class(policy, args=config_class("out", **options), **arguments)


def train(make: Callable[[], Trainer], folder: Path, kill_at: int | None = None, resume: bool = False) -> int:
    """Trains and saves in `folder`, in a process of its own; returns its status, negative if it was killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with (folder / ("resumed.log" if resume else "log")).open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        status = 1
        try:
            os.chdir(folder)
            points = Points(folder, kill_at)
            for owner, name in (
                (torch, "save"),
                (transformers.modeling_utils, "safe_save_file"),
                (peft.peft_model, "safe_save_file"),
                (TrainerState, "save_to_json"),
                (Path, "write_text"),
                (os, "replace"),
                (RunLog, "append"),
                (shutil, "rmtree"),
            ):
                points.around(owner, name)
            trainer = make()
            trainer.add_callback(AtUpdates(points))
            there = any(fault_of(path) is None for path in checkpoints_of(folder / "out"))
            trainer.train(resume_from_checkpoint=True if resume and there else None)
            trainer.save_model()
            points.reach()
            (folder / "points").write_bytes(str(points.count).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


def ending(folder: Path) -> dict[str, Any]:
    """Weights and run log, without timings."""

    def lines(path: Path) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: value for key, value in row.items() if not _TIMINGS.search(key)} for row in rows]

    weights = {path.name: path.read_bytes() for path in (folder / "out").glob("*.safetensors")}
    return {"weights": weights} | {path.name: lines(path) for path in (folder / "out" / "run_log").iterdir()}


def differences(make: Callable[[], Trainer], straight: Path, folder: Path, kill_at: int) -> list[str]:
    """What a run that was killed and resumed ends with, and the straight one does not."""
    (folder / "out").mkdir(parents=True)
    if train(make, folder, kill_at) != -signal.SIGKILL:
        return ["was not killed"]
    if train(make, folder, resume=True) != 0:
        return [(folder / "resumed.log").read_text()[-1000:]]
    here, there = ending(folder), ending(straight)
    return [name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", action="append", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    SampleLog.max_new_tokens = 4
    os.chdir(given.out)
    for number, kind in enumerate(given.kind):
        straight = given.out / kind / "straight"
        (straight / "out").mkdir(parents=True)
        make: Callable[[], Trainer] = functools.partial(make_trainer, kind, given.model)
        if kind != "lora_cached":  # whose cache is written by the trainer's making, in which it is killed, too
            built = make()
            make = lambda built=built: built  # noqa: E731
        assert train(make, straight) == 0, (straight / "log").read_text()[-2000:]
        points = int((straight / "points").read_bytes())
        tried = range(number % given.every, points, given.every)
        wrong = {}
        for point in tried:
            found = differences(make, straight, given.out / kind / str(point), point)
            if found:
                wrong[point] = found
        sys.stdout.write(json.dumps({"kind": kind, "points": points, "tried": len(tried), "wrong": wrong}) + "\n")


if __name__ == "__main__":
    main()
