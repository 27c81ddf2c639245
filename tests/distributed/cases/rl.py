"""Reinforcement learning, on completions that do not depend on the number of processes."""

from typing import Any

import torch
from launch import TRAININGS, TWO_PROCESSES_ONLY, UPDATE, Launch, case, train
from reinforced import trainer_of
from transformers import PrinterCallback

from trl_dpo_ext import KLTargetCallback


LENGTH = 4  # of all completions, since TRL's GRPO loss is a mean over the tokens of each process


def _reward(prompts: list[str], completions: list[str]) -> list[float]:
    return [sum(map(ord, text)) % 97 / 97 for text in completions]


def rl_trainer(launch: Launch, kind: str, *, samples: bool = False, **changed: Any) -> Any:
    """Builds a trainer. If it `samples` its completions, these depend on the number of processes."""
    sizes = {"per_device_train_batch_size": UPDATE // launch.num_processes, "num_iterations": 2, "max_steps": 4}
    trainer = trainer_of(kind, launch.model, launch.folder / "run", _reward, **sizes, **changed)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(KLTargetCallback(trainer, target=1.0, horizon=40))

    if samples:
        return trainer

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        # The row in the batch of all processes decides
        first = trainer.accelerator.process_index * len(input_ids)
        rows = [
            [8 + (7 * (first + i) + 3 * t + 11 * trainer.state.global_step) % 300 for t in range(LENGTH)]
            for i in range(len(input_ids))
        ]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)

    trainer.model.generate = generate
    return trainer


def train_rl(launch: Launch, name: str, trainer: Any) -> dict[str, Any]:
    result = train(launch, trainer, name)
    for log in result["history"]:
        log.pop("step_time", None)
    return result


@case(TRAININGS)
def rloo(launch: Launch) -> dict[str, Any]:
    """Two generations of RLOO with a KL target."""
    return train_rl(launch, "rloo", rl_trainer(launch, "rloo"))


@case(TWO_PROCESSES_ONLY)
def rloo_samples(launch: Launch) -> dict[str, Any]:
    """The same on completions that it samples."""
    return train_rl(launch, "rloo_samples", rl_trainer(launch, "rloo", samples=True))


@case(TRAININGS)
def ppo(launch: Launch) -> dict[str, Any]:
    """Two generations of PPO with a KL target. The value model is compared by its loss."""
    return train_rl(launch, "ppo", rl_trainer(launch, "ppo", max_grad_norm=0.5))
