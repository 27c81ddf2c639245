"""DeepSpeed ZeRO. In a launch of their own: accelerate's switch for it stays in the environment."""

from typing import Any

from launch import SAMPLES, SGD, ZERO, Launch, case, evaluate, make_trainer, models_of, run_log, train
from tiny import lora_config, preference_rows

from cases.cache import cached_options, files_of
from cases.checkpoints import train_twice
from cases.rankings import train_on_rankings
from cases.rl import rl_trainer, train_rl


def _zero(stage: int, **settings: Any) -> dict[str, Any]:
    automatic = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {
        "deepspeed": {
            "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": stage == 3, **settings},
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
        }
        | dict.fromkeys(automatic, "auto")
    }


@case(ZERO)
def zero2_accumulates(launch: Launch) -> dict[str, Any]:
    """`accumulates` under ZeRO-2."""
    options = {"per_device_train_batch_size": 2, "global_batch_size": 8} | _zero(2)
    trainer = make_trainer(launch, 16, options=options)
    return train(launch, trainer, "zero2_accumulates") | {"parts": _parts(trainer)}


@case(ZERO)
def zero3(launch: Launch) -> dict[str, Any]:
    """`ragged` under ZeRO-3, evaluated like `evaluates` and saved."""
    rows = preference_rows(9, start=40)
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3} | SAMPLES | _zero(3)
    trainer = make_trainer(launch, 11, options=options, eval_dataset=rows)
    result = train(launch, trainer, "zero3")
    trainer.save_model(str(launch.folder / "saved"))
    return result | {"parts": _parts(trainer)} | evaluate(trainer, rows) | {"run_log": run_log(trainer)}


@case(ZERO)
def zero3_resumes(launch: Launch) -> dict[str, Any]:
    """`resumes_ragged` under ZeRO-3."""
    return train_twice(launch, 11, "zero3_resumes", **_zero(3))


@case(ZERO)
def zero3_accumulates(launch: Launch) -> dict[str, Any]:
    """`ragged_accumulates` under ZeRO-3."""
    options = {"per_device_train_batch_size": 2, "global_batch_size": 8, "num_train_epochs": 2}
    trainer = make_trainer(launch, 11, options=options | SGD | _zero(3))
    return train(launch, trainer, "zero3_accumulates") | {"parts": _parts(trainer)}


@case(ZERO)
def zero3_lora(launch: Launch) -> dict[str, Any]:
    """`lora` under ZeRO-3."""
    options = SGD | {"gradient_checkpointing": True} | _zero(3)
    trainer = make_trainer(launch, 11, options=options, peft_config=lora_config())
    return train(launch, trainer, "zero3_lora") | {"parts": _parts(trainer)}


@case(ZERO)
def zero3_cached(launch: Launch) -> dict[str, Any]:
    """`cached` under ZeRO-3."""
    folder = launch.folder / "cache"
    trainer = make_trainer(launch, 11, options=cached_options(folder) | _zero(3))
    logps = [list(trainer.train_dataset[name]) for name in ("ref_chosen_logps", "ref_rejected_logps")]
    return train(launch, trainer, "zero3_cached") | {"logps": logps, "files": files_of(folder)}


@case(ZERO)
def zero2_cached(launch: Launch) -> dict[str, Any]:
    """`ragged` under ZeRO-2 with the file that `cached` wrote in the launch before."""
    folder = launch.reuse / "cached" / "cache"
    before = files_of(folder)
    result = train(launch, make_trainer(launch, 11, options=cached_options(folder) | _zero(2)), "zero2_cached")
    return result | {"files": before, "files_after": files_of(folder)}


@case(ZERO)
def zero3_in_parts(launch: Launch) -> dict[str, Any]:
    """`zero3_ranks` without gradient checkpointing."""
    try:
        train_on_rankings(launch, "zero3_in_parts", completions_per_forward=2, **_zero(3))
    except ValueError as error:
        return {"message": str(error)}
    return {"message": ""}


@case(ZERO)
def zero3_ranks(launch: Launch) -> dict[str, Any]:
    """`ranks` under ZeRO-3, two completions in memory at a time."""
    options = {"gradient_checkpointing": True, "completions_per_forward": 2}
    trainer, trained = train_on_rankings(launch, "zero3_ranks", **options, **_zero(3))
    return trained | {"parts": _parts(trainer)}


@case(ZERO)
def zero3_rloo(launch: Launch) -> dict[str, Any]:
    """`rloo` under ZeRO-3."""
    trainer = rl_trainer(launch, "rloo", **_zero(3))
    return train_rl(launch, "zero3_rloo", trainer) | {"parts": _parts(trainer)}


def _parts(trainer: Any) -> dict[str, Any]:
    return models_of(trainer, lambda parameter: hasattr(parameter, "ds_id"))
