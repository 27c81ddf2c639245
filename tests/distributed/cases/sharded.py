"""Weights sharded by FSDP2."""

from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType
from flash_on_cpu import flash_on_cpu
from launch import (
    SAMPLES,
    SGD,
    TWO_PROCESSES_ONLY,
    Launch,
    case,
    evaluate,
    make_config,
    make_trainer,
    models_of,
    run_log,
    train,
)
from tiny import lora_config, preference_rows
from torch.distributed.tensor import DTensor

from cases.rankings import train_on_rankings
from cases.rl import rl_trainer, train_rl
from trl_dpo_ext import DPOPaperTrainer
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer


FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}


@case(TWO_PROCESSES_ONLY)
def sharded(launch: Launch) -> dict[str, Any]:
    """`ragged` under FSDP2, evaluated like `evaluates` and saved."""
    rows = preference_rows(9, start=40)
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3} | SAMPLES
    trainer = _make_sharded(launch, 11, options=options | {"folder": "sharded"}, eval_dataset=rows)
    result = train(launch, trainer, "sharded")
    return result | {"shards": _shards(trainer)} | evaluate(trainer, rows) | {"run_log": run_log(trainer)}


@case(TWO_PROCESSES_ONLY)
def sharded_lora(launch: Launch) -> dict[str, Any]:
    """`lora` under FSDP2."""
    trainer = _make_sharded(launch, 11, options=SGD, peft_config=lora_config())
    return train(launch, trainer, "sharded_lora") | {"shards": _shards(trainer)}


@case(TWO_PROCESSES_ONLY)
def sharded_ranks(launch: Launch) -> dict[str, Any]:
    """`ranks` under FSDP2, two completions in memory at a time."""
    trainer, trained = train_on_rankings(launch, "sharded_ranks", build=_make_sharded, completions_per_forward=2)
    return trained | {"shards": _shards(trainer)}


@case(TWO_PROCESSES_ONLY)
def sharded_varlen(launch: Launch) -> dict[str, Any]:
    """`sharded_ranks` by torch's FlashAttention, imitated."""
    options = {"completions_per_forward": 2, "attention_path": "varlen"}
    with flash_on_cpu() as calls:
        trainer, trained = train_on_rankings(launch, "sharded_varlen", build=_make_sharded, **options)
    return trained | {"shards": _shards(trainer), "uses_kernel": calls["backward"] > 0}


@case(TWO_PROCESSES_ONLY)
def sharded_rloo(launch: Launch) -> dict[str, Any]:
    """`rloo_samples` under FSDP2."""
    trainer = rl_trainer(launch, "rloo", samples=True, prepare=_as_on_gpus, **FSDP2)
    return train_rl(launch, "sharded_rloo", trainer) | {"shards": _shards(trainer)}


def _as_on_gpus() -> None:
    # On a CPU accelerate leaves FSDP out without a word and trains under DDP
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _make_sharded(
    launch: Launch,
    rows: Any,
    trainer_class: type[BaseDPOTrainer] = DPOPaperTrainer,
    *,
    options: dict[str, Any],
    **arguments: Any,
) -> BaseDPOTrainer:
    args = make_config(launch, trainer_class.config_class, **FSDP2, **options)
    _as_on_gpus()
    return make_trainer(launch, rows, trainer_class, args=args, **arguments)


def _shards(trainer: Any) -> dict[str, Any]:
    return models_of(trainer, lambda parameter: isinstance(parameter, DTensor))
