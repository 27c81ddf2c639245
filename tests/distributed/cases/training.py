"""Training on pairs: sizes that divide or not, models, adapters, references, losses, images and streams."""

from typing import Any

import torch
from datasets import load_dataset
from launch import IN_FLOAT32, SGD, TRAININGS, UPDATE, Launch, case, evaluate, make_trainer, train
from peft import get_peft_model
from tiny import lora_config, preference_rows, tiny_llama, tiny_processor, tiny_tokenizer, tiny_vlm
from trl import DPOConfig

from trl_dpo_ext import PreferredFTTrainer, UnlikelihoodTrainer
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer


@case(TRAININGS)
def divides(launch: Launch) -> dict[str, Any]:
    """12 rows, 3 updates, evaluated on 5 rows in between."""
    options = {"eval_strategy": "steps", "eval_steps": 2}
    return train(launch, make_trainer(launch, options=options, eval_dataset=preference_rows(5, start=40)), "divides")


@case(TRAININGS)
def accumulates(launch: Launch) -> dict[str, Any]:
    """16 rows in 2 updates of 4 micro-batches on one process, of 2 on each of two."""
    trainer = make_trainer(launch, 16, options={"per_device_train_batch_size": 2, "global_batch_size": 8})
    result = train(launch, trainer, "accumulates")
    return result | {"micro_batches": trainer.args.gradient_accumulation_steps}


@case(TRAININGS)
def shuffles(launch: Launch) -> dict[str, Any]:
    """11 rows in the default order, random, for 2 epochs."""
    options = {"train_sampling_strategy": "random", "num_train_epochs": 2}
    return train(launch, make_trainer(launch, 11, options=options), "shuffles")


@case(TRAININGS)
def ragged(launch: Launch) -> dict[str, Any]:
    """11 rows in updates of 4: the second of two processes repeats a row in the last one."""
    return train(launch, make_trainer(launch, 11, options={"num_train_epochs": 2}), "ragged")


@case(IN_FLOAT32)
def ragged_float32(launch: Launch) -> dict[str, Any]:
    """`ragged` in float32, as users run it."""
    return train(launch, make_trainer(launch, 11, options={"num_train_epochs": 2}), "ragged_float32")


@case(TRAININGS)
def ragged_accumulates(launch: Launch) -> dict[str, Any]:
    """11 rows in updates of 8: the last has 3, in 2 micro-batches on one process, in 1 on each of two."""
    options = {"per_device_train_batch_size": 2, "global_batch_size": 8, "num_train_epochs": 2}
    return train(launch, make_trainer(launch, 11, options=options | SGD), "ragged_accumulates")


@case(TRAININGS)
def idle(launch: Launch) -> dict[str, Any]:
    """9 rows in updates of 4: the last is one row, and the second of two processes has none of its own."""
    return train(launch, make_trainer(launch, 9, options={"num_train_epochs": 2}), "idle")


@case(TRAININGS)
def idle_accumulates(launch: Launch) -> dict[str, Any]:
    """The same in micro-batches of one row."""
    options = {"per_device_train_batch_size": 1, "num_train_epochs": 2}
    return train(launch, make_trainer(launch, 9, options=options), "idle_accumulates")


@case(TRAININGS)
def one_row(launch: Launch) -> dict[str, Any]:
    """One row in all."""
    return train(launch, make_trainer(launch, 1, options={"num_train_epochs": 2}), "one_row")


@case(TRAININGS)
def drops_last(launch: Launch) -> dict[str, Any]:
    """11 rows, the incomplete update left out."""
    return train(launch, make_trainer(launch, 11, options={"dataloader_drop_last": True}), "drops_last")


@case(TRAININGS)
def chat_instance(launch: Launch) -> dict[str, Any]:
    """Chat data and a model instance, whose reference is a copy in memory."""
    rows = preference_rows(11, "chat")
    trainer = make_trainer(launch, rows, model=tiny_llama(seed=3), processing_class=tiny_tokenizer())
    return train(launch, trainer, "chat_instance")


@case(TRAININGS)
def from_file(launch: Launch) -> dict[str, Any]:
    """Rows of a JSONL file, so that all processes write to one cache of `datasets`."""
    path = launch.folder / f"rows_of_rank{launch.rank}.jsonl"
    preference_rows(11).to_json(path)
    if launch.num_processes > 1:
        torch.distributed.barrier()
    path = launch.folder / "rows_of_rank0.jsonl"
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(launch.folder / "datasets"))
    return train(launch, make_trainer(launch, rows), "from_file")


@case(TRAININGS)
def trl_config(launch: Launch) -> dict[str, Any]:
    """A plain `trl.DPOConfig`: TRL's tokens, optimizer and schedule, and gradient checkpointing."""
    args = DPOConfig(
        str(launch.folder / "run"),
        bf16=False,
        use_cpu=True,
        per_device_train_batch_size=UPDATE // launch.num_processes,
        learning_rate=1e-3,
        num_train_epochs=1,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        train_sampling_strategy="sequential",
        disable_tqdm=True,
    )
    return train(launch, make_trainer(launch, 11, args=args), "trl_config")


@case(TRAININGS)
def reference_free(launch: Launch) -> dict[str, Any]:
    """Rewards are beta log pi, so that `predict` gives the log-probabilities of each row."""
    rows = preference_rows(9, start=40)
    trainer = make_trainer(launch, 11, options={"reference_free": True}, eval_dataset=rows)
    return train(launch, trainer, "reference_free") | evaluate(trainer, rows) | {"beta": trainer.beta}


@case(TRAININGS)
def synced_reference(launch: Launch) -> dict[str, Any]:
    """TR-DPO: the reference follows the policy."""
    options = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
    return train(launch, make_trainer(launch, 11, options=options), "synced_reference")


@case(TRAININGS)
def lora(launch: Launch) -> dict[str, Any]:
    """A fresh adapter under gradient checkpointing; the reference is the model with the adapter off."""
    rows = preference_rows(9, start=40)
    options = SGD | {"gradient_checkpointing": True}
    trainer = make_trainer(launch, 11, options=options, peft_config=lora_config(), eval_dataset=rows)
    return train(launch, trainer, "lora") | evaluate(trainer, rows)


@case(TRAININGS)
def trained_adapter(launch: Launch) -> dict[str, Any]:
    """A `PeftModel` whose adapter is not at 0; the reference is TRL's frozen copy of the adapter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = get_peft_model(tiny_llama(), lora_config())
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    trainer = make_trainer(launch, 11, options=SGD, model=model, processing_class=tiny_tokenizer())
    return train(launch, trainer, "trained_adapter")


@case(TRAININGS)
def hinge(launch: Launch) -> dict[str, Any]:
    """A loss of TRL's own on 11 rows in updates of 4."""
    return train(launch, make_trainer(launch, 11, options={"loss_type": "hinge"}), "hinge")


@case(TRAININGS)
def unlikelihood(launch: Launch) -> dict[str, Any]:
    """The paper's baseline, whose rewards are logged against the start of training."""
    return _baseline(launch, "unlikelihood", UnlikelihoodTrainer, alpha=0.5, reference_free=False)


@case(TRAININGS)
def preferred_ft(launch: Launch) -> dict[str, Any]:
    """The mean over an update's answer tokens, which processes and micro-batches have different numbers of."""
    options = {"per_device_train_batch_size": 1, "loss_reduction": "token_mean"}
    return _baseline(launch, "preferred_ft", PreferredFTTrainer, **options)


def _baseline(launch: Launch, name: str, trainer_class: type[BaseDPOTrainer], **options: Any) -> dict[str, Any]:
    options = SGD | {"learning_rate": 0.01} | options
    trainer = make_trainer(launch, 11, trainer_class, options=options, eval_dataset=preference_rows(9, start=40))
    return train(launch, trainer, name) | {"metrics": trainer.evaluate()}


@case(TRAININGS)
def vision(launch: Launch) -> dict[str, Any]:
    """A vision-language model on 7 rows with images, evaluated on 5."""
    return _vision(launch, "vision")


@case(TRAININGS)
def vision_ipo(launch: Launch) -> dict[str, Any]:
    """A loss of TRL's own on 7 rows with images."""
    return _vision(launch, "vision_ipo", loss_type="ipo")


def _vision(launch: Launch, name: str, **options: Any) -> dict[str, Any]:
    rows = preference_rows(5, "vision", start=20)
    trainer = make_trainer(
        launch,
        preference_rows(7, "vision"),
        options=SGD | {"learning_rate": 0.01} | options,
        model=tiny_vlm(),
        processing_class=tiny_processor(),
        eval_dataset=rows,
    )
    return train(launch, trainer, name) | evaluate(trainer, rows)


@case(TRAININGS)
def streams(launch: Launch) -> dict[str, Any]:
    """12 rows of a streaming data set of one shard."""
    rows = preference_rows(12).to_iterable_dataset()
    return train(launch, make_trainer(launch, rows, options={"max_steps": 3}), "streams")


@case(TRAININGS)
def brought(launch: Launch) -> dict[str, Any]:
    """Reference log-probabilities that the rows bring."""
    rows = preference_rows(11)
    rows = rows.add_column("ref_chosen_logps", [-200.0 - i for i in range(11)])
    rows = rows.add_column("ref_rejected_logps", [-210.0 + i for i in range(11)])
    return train(launch, make_trainer(launch, rows), "brought")
