"""What the integration tests share: a config for tiny runs, and a run that returns its log."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import preference_rows

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer


TINY = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "global_batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "gradient_checkpointing": False,
    "train_sampling_strategy": "sequential",
}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DPOPaperConfig]:
    """Makes a `DPOPaperConfig` for a tiny run; options override."""

    def make(folder: str = "out", **options: Any) -> DPOPaperConfig:
        return DPOPaperConfig(str(tmp_path / folder), **TINY | options)

    return make


@pytest.fixture
def trained(config: Callable[..., DPOPaperConfig]) -> Callable[..., DPOPaperTrainer]:
    """Builds a trainer on tiny rows, trains it, and returns it."""

    def run(model: Any, options: dict[str, Any] | None = None, resume: Any = None, **kwargs: Any) -> DPOPaperTrainer:
        kwargs.setdefault("train_dataset", preference_rows(12))
        trainer = DPOPaperTrainer(model=model, args=config(**options or {}), **kwargs)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def updates(trainer: DPOPaperTrainer) -> list[dict[str, float]]:
    """The training log, one entry an update."""
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]
