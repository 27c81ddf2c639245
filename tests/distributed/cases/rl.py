"""Reinforcement learning, on completions that do not depend on the number of processes."""

from typing import Any

import torch
from datasets import Dataset
from launch import TRAININGS, UPDATE, Launch, case, train
from reinforced import PROMPTS, trainer_of
from transformers import PrinterCallback

from trl_dpo_ext import KLTargetCallback


LENGTH = 4  # of all completions, since TRL's GRPO loss is a mean over the tokens of each process


def _reward(prompts: list[str], completions: list[str]) -> list[float]:
    return [sum(map(ord, text)) % 97 / 97 for text in completions]


def _trainer(launch: Launch, kind: str, **options: Any) -> Any:
    trainer = trainer_of(
        kind,
        launch.model,
        launch.folder / "run",
        _reward,
        per_device_train_batch_size=UPDATE // launch.num_processes,
        num_iterations=2,
        max_steps=4,
        **options,
    )
    trainer.train_dataset = Dataset.from_dict({"prompt": PROMPTS * UPDATE})
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(KLTargetCallback(trainer, target=1.0, horizon=40))

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


def _train(launch: Launch, name: str, trainer: Any) -> dict[str, Any]:
    result = train(launch, trainer, name)
    for log in result["history"]:
        log.pop("step_time", None)
    return result


@case(TRAININGS)
def rloo(launch: Launch) -> dict[str, Any]:
    """Two generations of RLOO with a KL target."""
    return _train(launch, "rloo", _trainer(launch, "rloo"))


@case(TRAININGS)
def ppo(launch: Launch) -> dict[str, Any]:
    """Two generations of PPO with a KL target. The value model is compared by its loss."""
    return _train(launch, "ppo", _trainer(launch, "ppo", max_grad_norm=0.5))
