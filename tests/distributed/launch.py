"""
What the cases share: where they run, how they are registered, and how they build, train and evaluate.

A case is a function that takes a `Launch` and returns what `run_case.py` writes. Its docstring says what it shows.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import preference_rows, tiny_llama
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer


UPDATE = 4  # rows an update, whatever the number of processes
# RMSprop's first updates have size 1 whatever the gradient. Where gradients are 0 but for rounding (adapters at their
# start, biases of keys) it makes updates of the rounding, so those cases are trained by SGD, which besides shows a
# gradient of the wrong scale.
SGD = {"optim": "sgd", "learning_rate": 0.3}
RESUME_AFTER = 2  # updates
# Three prompts, with answers of at most 32 tokens: `max_length` is 512. No row is so long that its prompt is truncated
SAMPLES = {"log_samples": 3, "max_prompt_length": 480}


@dataclass
class Launch:
    """
    Where a case runs.

    Args:
        num_processes (`int`): Number of processes.
        rank (`int`): Number of this one.
        model (`str`): Folder of the tiny Llama.
        out (`Path`): Folder of the launch's results.
        folder (`Path`): Folder of what this case writes; the same for all processes.
        reuse (`Path`): `out` of an earlier launch.
    """

    num_processes: int
    rank: int
    model: str
    out: Path
    folder: Path
    reuse: Path


Case = Callable[[Launch], dict[str, Any]]
CASES: dict[str, Case] = {}  # run in this order
TRAININGS: list[str] = []  # end with the same numbers on one process and on two
TWO_PROCESSES_ONLY: list[str] = []
ZERO: list[str] = []  # DeepSpeed; run when asked for by name
IN_FLOAT32: list[str] = []
FATAL: list[str] = []  # end the launch; run when asked for by name
AFTER_ANOTHER: list[str] = []  # go on from what another launch wrote; run when asked for by name


def case(*names_of: list[str]) -> Callable[[Case], Case]:
    """Registers a case, and its name in the given lists."""

    def register(run: Case) -> Case:
        CASES[run.__name__] = run
        for names in names_of:
            names.append(run.__name__)
        return run

    return register


def make_config(
    launch: Launch, config_class: type[BaseDPOConfig] = DPOPaperConfig, *, folder: str = "run", **options: Any
) -> BaseDPOConfig:
    defaults = {
        "use_cpu": True,
        "per_device_train_batch_size": UPDATE // launch.num_processes,
        "per_device_eval_batch_size": 4,
        "global_batch_size": UPDATE,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "disable_tqdm": True,
    }
    return config_class(str(launch.folder / folder), **(defaults | options))


def make_trainer(
    launch: Launch,
    rows: Any = 12,
    trainer_class: type[BaseDPOTrainer] = DPOPaperTrainer,
    *,
    options: dict[str, Any] | None = None,
    **arguments: Any,
) -> BaseDPOTrainer:
    """Builds a trainer on `rows`, or on as many pairs, from the options of its config."""
    dataset = preference_rows(rows) if isinstance(rows, int) else rows
    arguments = {"model": launch.model, "train_dataset": dataset, **arguments}
    if "args" not in arguments:
        arguments["args"] = make_config(launch, trainer_class.config_class, **(options or {}))
    trainer = trainer_class(**arguments)
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(launch: Launch, trainer: BaseDPOTrainer, name: str, **arguments: Any) -> dict[str, Any]:
    """Trains; the main process saves the weights."""
    start = _weights(trainer)
    trainer.train(**arguments)
    end = _weights(trainer)
    if launch.rank == 0:
        save_file(end, launch.out / f"{name}.safetensors")
    digest = hashlib.sha256()
    for key in sorted(end):
        digest.update(end[key].numpy().tobytes())
    moved = torch.stack([(end[key].double() - start[key].double()).norm() for key in end]).norm()
    return {"history": list(trainer.state.log_history), "travelled": moved.item(), "weights": digest.hexdigest()}


def _weights(trainer: BaseDPOTrainer) -> dict[str, torch.Tensor]:
    state = {key: tensor.detach() for key, tensor in trainer.model.state_dict().items()}
    whole = {key: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for key, tensor in state.items()}
    for key, parameter in trainer.model.named_parameters(remove_duplicate=False):
        if hasattr(parameter, "ds_id"):
            from deepspeed import zero

            with zero.GatheredParameters([parameter]):
                whole[key] = parameter.detach().clone()
    return {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in whole.items()}


def evaluate(trainer: BaseDPOTrainer, rows: Any) -> dict[str, Any]:
    output = trainer.predict(rows)
    return {
        "metrics": trainer.evaluate(),
        "test_metrics": output.metrics,
        "predictions": output.predictions.tolist(),
        "label_ids": output.label_ids.tolist(),
    }


def explicit_reference() -> Any:
    """Another model than the policy, against which rewards are far from 0 without any training."""
    return tiny_llama(seed=1)


def run_log(trainer: BaseDPOTrainer) -> dict[str, list]:
    trainer.accelerator.wait_for_everyone()
    files = Path(trainer.args.output_dir, "run_log").glob("*.jsonl")
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in files}


def models_of(trainer: Any, is_shard: Callable[[torch.nn.Parameter], bool]) -> dict[str, Any]:
    """How the models are distributed: parameters in shards, and all, of policy and reference."""
    models = {"policy": trainer.model} | ({"reference": trainer.ref_model} if trainer.ref_model else {})
    found: dict[str, Any] = {"distributed_type": trainer.accelerator.distributed_type.value}
    if isinstance(trainer, BaseDPOTrainer):
        found["prompts"] = str(trainer.runner)
    for name, model in models.items():
        found[name] = [sum(map(is_shard, model.parameters())), len(list(model.parameters()))]
    return found
