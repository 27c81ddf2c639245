"""Training on rankings."""

from collections.abc import Callable
from typing import Any

from flash_on_cpu import flash_on_cpu
from launch import SGD, TRAININGS, TWO_PROCESSES_ONLY, Launch, case, evaluate, make_trainer, train
from tiny import ranking_rows

from trl_dpo_ext import RankingDPOTrainer


# 2 to 6 completions; in every other row the first two tie
SIZES = [2 + 2 * i % 5 for i in range(5)]
RANKS = [range(6), [0, *range(5)]]


@case(TRAININGS)
def ranks(launch: Launch) -> dict[str, Any]:
    """7 rankings of 2 to 6 completions in updates of 4: the second of two processes repeats a row in the last one."""
    trainer, trained = train_on_rankings(launch, "ranks")
    return trained | evaluate(trainer, ranking_rows(9, SIZES, RANKS, start=40))


@case(TRAININGS)
def ranks_in_parts(launch: Launch) -> dict[str, Any]:
    """The same, two completions in memory at a time."""
    return train_on_rankings(launch, "ranks_in_parts", completions_per_forward=2)[1]


@case(TRAININGS)
def ranks_cached(launch: Launch) -> dict[str, Any]:
    """The same with cached reference log-probabilities."""
    options = {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(launch.folder / "cache")}
    trainer, trained = train_on_rankings(launch, "ranks_cached", **options)
    return trained | {"metrics": trainer.evaluate()}


@case(TWO_PROCESSES_ONLY)
def ranks_varlen(launch: Launch) -> dict[str, Any]:
    """`ranks_in_parts` by torch's FlashAttention, imitated."""
    with flash_on_cpu() as calls:
        trainer, trained = train_on_rankings(
            launch, "ranks_varlen", completions_per_forward=2, attention_path="varlen"
        )
    return trained | {"prompts": str(trainer.runner), "uses_kernel": calls["backward"] > 0}


def train_on_rankings(
    launch: Launch, name: str, build: Callable[..., Any] = make_trainer, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Builds a trainer with `build` and trains it. Returns it, and what it wrote."""
    evaluated = ranking_rows(9, SIZES, RANKS, start=40)
    trainer = build(
        launch, ranking_rows(7, SIZES, RANKS), RankingDPOTrainer, options=SGD | options, eval_dataset=evaluated
    )
    return trainer, train(launch, trainer, name)
