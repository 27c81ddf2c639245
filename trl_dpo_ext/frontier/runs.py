"""The runs of a frontier, each in a folder of its own, one after another."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, set_seed

from trl_dpo_ext.evaluation.rewards.reward_identity import identity_of_reward
from trl_dpo_ext.frontier.config import KL_TARGET_OPTIONS, Run
from trl_dpo_ext.frontier.points import CountedReward, RunPoints
from trl_dpo_ext.frontier.stages import SharedParts
from trl_dpo_ext.frontier.table import Point
from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.reward_model.files.run_identity import versions
from trl_dpo_ext.trainers.checkpoints.checkpoint_files import newest_whole_here
from trl_dpo_ext.whole_file import write_text


__all__ = ["RunFolder", "RunStatus", "run_folder", "train_runs"]

logger = get_logger(__name__)

RunStatus = dict[str, Any]
_POINTS, _STATUS, _IDENTITY = "points.jsonl", "status.json", "run.json"


class RunFolder:
    """
    Folder of a run.

    Args:
        run ([`Run`]):
            Run.
        folder (`Path`):
            Folder.
        identity (`dict`):
            Everything that the run depends on.
    """

    def __init__(self, run: Run, folder: Path, identity: dict[str, Any]):
        self.run = run
        self.folder = folder
        self.identity = identity

    @property
    def points(self) -> list[Point]:
        """Points so far."""
        path = self.folder / _POINTS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [Point.of(json.loads(line)) for line in lines]

    @property
    def status(self) -> RunStatus:
        """`{"state": "done"}`, `{"state": "failed", "error": ...}` or `{"state": "open"}`."""
        path = self.folder / _STATUS
        found: RunStatus = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"state": "open"}
        return found

    def end(self, state: str, **more: Any) -> None:
        """Notes how the run ended."""
        write_text(self.folder / _STATUS, json.dumps({"state": state, **more}, indent=2) + "\n")

    def begin(self) -> None:
        """Makes the folder, and notes the identity of the run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _STATUS).unlink(missing_ok=True)
        write_text(self.folder / _IDENTITY, json.dumps(self.identity, indent=2) + "\n")


def run_folder(run: Run, parts: SharedParts) -> RunFolder:
    """Returns the folder of a run, whose name ends in a hash of everything that the run depends on."""
    config = parts.config
    identity = {
        **asdict(run),
        "sft": parts.sft_hash,
        "preferences": None if run.of.is_rl and run.of.true_reward else parts.preferences_hash,
        "prompts": xxhash.xxh3_128_hexdigest(json.dumps(parts.prompts).encode()),
        "reward": identity_of_reward(parts.reward),
        "reward_model": None if run.of.true_reward else dict(config.reward_model),
        "max_new_tokens": config.max_new_tokens,
        "evaluate_every": config.evaluate_every,
        "seed_of_shared_parts": config.seed,
        **versions(),
    }
    digest = xxhash.xxh3_64_hexdigest(json.dumps(identity, sort_keys=True).encode())
    return RunFolder(run, parts.folder / "runs" / f"{run.name}_{digest}", identity)


def train_runs(parts: SharedParts, runs: Sequence[Run], *, retry: bool = False) -> Iterator[RunFolder]:
    """
    Trains the runs that are not done, and yields the folder of each.

    A run that fails is noted with its error, and the others go on.

    Args:
        parts ([`SharedParts`]):
            What the runs share.
        runs (`Sequence[Run]`):
            Runs.
        retry (`bool`, *optional*, defaults to `False`):
            Whether to try runs again that failed.
    """
    for run in runs:
        folder = run_folder(run, parts)
        state = folder.status["state"]
        if state == "open" or (state == "failed" and retry):
            try:
                folder.begin()
                _train(folder, parts)
                folder.end("done")
            except Exception as error:  # of data, options, a reward, a full disk or numbers that are not finite
                _note_failure(folder, error)
        yield folder


def _note_failure(folder: RunFolder, error: Exception) -> None:
    message = f"{type(error).__name__}: {error}"
    logger.warning(f"The run {folder.run.name} failed. {message}")
    try:
        folder.end("failed", error=message)
    except OSError as second:  # the disk is full: it will be tried again
        logger.warning(f"The failure of {folder.run.name} cannot be noted: {second}")


def _train(folder: RunFolder, parts: SharedParts) -> None:
    run, config = folder.run, parts.config
    checkpoints = folder.folder / "checkpoints"
    loaded = run.of.load()
    args = loaded.config(str(checkpoints), **_options(run, parts))
    set_seed(run.seed)
    reward = CountedReward(parts.reward if run.of.true_reward else parts.learned_reward) if run.of.is_rl else None
    common = {"args": args, "train_dataset": _data(run, parts), "processing_class": parts.tokenizer}
    if reward is None:
        trainer = loaded.trainer(str(parts.sft), **common)
    else:
        trainer = loaded.trainer(str(parts.sft), reward, **common)

    def drawn() -> dict[str, int]:
        num = reward.num_calls if reward is not None else 0
        return {"samples_drawn": num, "reward_calls": num if run.of.true_reward else 0}

    points = RunPoints(
        run,
        folder.folder / _POINTS,
        parts.evaluator,
        parts.prompts[1],
        parts.known_words,
        config.evaluate_every,
        {"samples_drawn": 0, "reward_calls": 0} if run.of.is_rl and run.of.true_reward else parts.cost,
        drawn,
    )
    for printing in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printing)
    trainer.add_callback(points)
    if run.knob == "kl_target":
        from trl_dpo_ext.rl.kl_target import KLTargetCallback

        horizon = {"horizon": run.options["kl_horizon"]} if "kl_horizon" in run.options else {}
        trainer.add_callback(KLTargetCallback(trainer, float(run.value or 0), **horizon))
    trainer.train(resume_from_checkpoint=newest_whole_here(checkpoints))
    if config.save_policies:
        trainer.save_model(str(folder.folder / "policy"))
    shutil.rmtree(checkpoints, ignore_errors=True)


def _options(run: Run, parts: SharedParts) -> dict[str, Any]:
    """Options of the config of a trainer."""
    defaults: dict[str, Any] = {
        "seed": run.seed,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": parts.config.evaluate_every,
        "save_total_limit": 1,
        "logging_steps": parts.config.evaluate_every,
    }
    if run.of.is_rl:
        defaults["max_completion_length"] = parts.config.max_new_tokens
    options = {name: value for name, value in run.options.items() if name not in KL_TARGET_OPTIONS}
    if run.knob == "kl_target":
        options |= {"beta": run.options["initial_beta"]} if "initial_beta" in run.options else {}
    elif run.knob is not None:
        options[run.knob] = run.value
    return defaults | options


def _data(run: Run, parts: SharedParts) -> Dataset:
    if run.of.is_rl:
        return Dataset.from_dict({"prompt": parts.prompts[0]})
    if run.of.data == "rankings":
        return parts.preferences
    return parts.pairs
