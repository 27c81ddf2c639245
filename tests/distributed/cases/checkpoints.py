"""Saving, resuming, and the best checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch import AFTER_ANOTHER, RESUME_AFTER, TRAININGS, Launch, case, evaluate, make_trainer, train
from tiny import preference_rows, tiny_moe, tiny_tokenizer


@case()
def resumes_ragged(launch: Launch) -> dict[str, Any]:
    """11 rows, from the checkpoint in the middle of the epoch, whose last update is short."""
    return train_twice(launch, 11, "resumes_ragged")


@case()
def resumes_experts(launch: Launch) -> dict[str, Any]:
    """A mixture of experts, whose weights are saved in another form, grouped by length, within the second epoch."""

    def model() -> dict[str, Any]:
        return {"model": tiny_moe(), "processing_class": tiny_tokenizer()}

    options = {"num_train_epochs": 2, "train_sampling_strategy": "group_by_length"}
    return train_twice(launch, 12, "resumes_experts", after=4, arguments=model, **options)


def train_twice(
    launch: Launch,
    rows: int,
    name: str,
    *,
    after: int = RESUME_AFTER,
    arguments: Callable[[], dict[str, Any]] = dict,
    **options: Any,
) -> dict[str, Any]:
    """Trains from start to end, and once more from the checkpoint `after` so many updates."""
    saves = {"save_strategy": "steps", "save_steps": after}
    trainer = make_trainer(launch, rows, options=options | saves, **arguments())
    straight = train(launch, trainer, f"{name}_straight")
    checkpoint = launch.folder / "run" / f"checkpoint-{after}"
    trainer = make_trainer(launch, rows, options=options | {"folder": "resumed"}, **arguments())
    resumed = train(launch, trainer, name, resume_from_checkpoint=str(checkpoint))
    return resumed | {"straight": straight, "state": json.loads((checkpoint / "trl_dpo_ext.json").read_text())}


@case(AFTER_ANOTHER)
def resumes_from_one(launch: Launch) -> dict[str, Any]:
    """`resumes_ragged` on several processes, from the checkpoint that one process wrote."""
    return _resumes_elsewhere(launch, "resumes_ragged", "resumes_from_one")


@case(AFTER_ANOTHER)
def resumes_after_loss(launch: Launch) -> dict[str, Any]:
    """`resumes_ragged` on one process, from the checkpoint that `loses_a_process` left behind."""
    return _resumes_elsewhere(launch, "loses_a_process", "resumes_after_loss")


def _resumes_elsewhere(launch: Launch, source: str, name: str) -> dict[str, Any]:
    checkpoint = launch.reuse / source / "run" / f"checkpoint-{RESUME_AFTER}"
    return train(launch, make_trainer(launch, 11), name, resume_from_checkpoint=str(checkpoint))


@case(TRAININGS)
def keeps_best(launch: Launch) -> dict[str, Any]:
    """The best of 3 checkpoints by a reward metric on 9 rows is loaded at the end."""
    rows = preference_rows(9, start=40)
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_rewards/chosen",
        "greater_is_better": False,
    }
    trainer = make_trainer(launch, 11, options=options, eval_dataset=rows)
    result = train(launch, trainer, "keeps_best")
    return result | {"best": Path(trainer.state.best_model_checkpoint).name} | evaluate(trainer, rows)
