"""
Trains and evaluates `DPOPaperTrainer` on the cases below, on one process or on several.

    python run_case.py --model FOLDER --out FOLDER
    torchrun --nproc_per_node 2 run_case.py --model FOLDER --out FOLDER --reuse FOLDER_OF_ONE_PROCESS --case NAME ...

Everything is computed in float64 (`closeness.in_float64`) but for `ragged_float32`.

Starting Python, torch and TRL costs more than a case, so a launch runs many. Each process writes `NAME.rank0.json`,
`NAME.rank1.json`, ...: what the case returned, or its traceback; the main process also writes the weights after a
training, `NAME.safetensors`. An exception ends the launch as it ends a user's script: once one of the processes has
failed, the others do not fit together with it any more.

`test_two_processes.py` and `test_two_machines.py` start it and compare what 1 and 2 processes wrote.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


sys.path.insert(0, str(Path(__file__).parents[1]))

from closeness import in_float64  # noqa: E402
from tiny import preference_rows, tiny_llama, tiny_moe, tiny_processor, tiny_tokenizer, tiny_vlm  # noqa: E402


UPDATE = 4  # rows an update, whatever the number of processes
# RMSprop's first updates have size 1 whatever the gradient. Where gradients are 0 but for rounding (adapters at their
# start, biases of keys) it makes updates of the rounding, so those cases are trained by SGD, which besides shows a
# gradient of the wrong scale.
_SGD = {"optim": "sgd", "learning_rate": 0.3}
RESUME_AFTER = 2  # updates


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
TWO_PROCESSES_ONLY: list[str] = []
ZERO: list[str] = []  # DeepSpeed; run when asked for by name
IN_FLOAT32: list[str] = []
FATAL: list[str] = []  # end the launch; run when asked for by name
AFTER_ANOTHER: list[str] = []  # go on from what another launch wrote; run when asked for by name


def case(*names_of: list[str]) -> Callable[[Case], Case]:
    def register(run: Case) -> Case:
        CASES[run.__name__] = run
        for names in names_of:
            names.append(run.__name__)
        return run

    return register


def make_config(launch: Launch, *, folder: str = "run", **options: Any):
    from trl_dpo_ext import DPOPaperConfig

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
    return DPOPaperConfig(str(launch.folder / folder), **(defaults | options))


def make_trainer(launch: Launch, rows: Any = 12, *, options: dict[str, Any] | None = None, **arguments: Any):
    from transformers import PrinterCallback

    from trl_dpo_ext import DPOPaperTrainer

    dataset = preference_rows(rows) if isinstance(rows, int) else rows
    arguments = {"model": launch.model, "train_dataset": dataset, **arguments}
    if "args" not in arguments:
        arguments["args"] = make_config(launch, **(options or {}))
    trainer = DPOPaperTrainer(**arguments)
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(launch: Launch, trainer: Any, name: str, **arguments: Any) -> dict[str, Any]:
    """Trains; the main process saves the weights."""
    from safetensors.torch import save_file

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


def _weights(trainer: Any) -> dict[str, torch.Tensor]:
    from torch.distributed.tensor import DTensor

    state = {key: tensor.detach() for key, tensor in trainer.model.state_dict().items()}
    whole = {key: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for key, tensor in state.items()}
    for key, parameter in trainer.model.named_parameters(remove_duplicate=False):
        if hasattr(parameter, "ds_id"):
            from deepspeed import zero

            with zero.GatheredParameters([parameter]):
                whole[key] = parameter.detach().clone()
    return {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in whole.items()}


def explicit_reference() -> Any:
    """Another model than the policy, against which rewards are far from 0 without any training."""
    return tiny_llama(seed=1)


def evaluate(trainer: Any, rows: Any) -> dict[str, Any]:
    output = trainer.predict(rows)
    return {
        "metrics": trainer.evaluate(),
        "test_metrics": output.metrics,
        "predictions": output.predictions.tolist(),
        "label_ids": output.label_ids.tolist(),
    }


# Training


@case()
def divides(launch: Launch) -> dict[str, Any]:
    """12 rows, 3 updates, evaluated on 5 rows in between."""
    options = {"eval_strategy": "steps", "eval_steps": 2}
    return train(launch, make_trainer(launch, options=options, eval_dataset=preference_rows(5, start=40)), "divides")


@case()
def accumulates(launch: Launch) -> dict[str, Any]:
    """16 rows in 2 updates of 4 micro-batches on one process, of 2 on each of two."""
    trainer = make_trainer(launch, 16, options={"per_device_train_batch_size": 2, "global_batch_size": 8})
    result = train(launch, trainer, "accumulates")
    return result | {"micro_batches": trainer.args.gradient_accumulation_steps}


@case()
def shuffles(launch: Launch) -> dict[str, Any]:
    """11 rows in the default order, random, for 2 epochs."""
    options = {"train_sampling_strategy": "random", "num_train_epochs": 2}
    return train(launch, make_trainer(launch, 11, options=options), "shuffles")


@case()
def ragged(launch: Launch) -> dict[str, Any]:
    """11 rows in updates of 4: the second of two processes repeats a row in the last one."""
    return train(launch, make_trainer(launch, 11, options={"num_train_epochs": 2}), "ragged")


@case(IN_FLOAT32)
def ragged_float32(launch: Launch) -> dict[str, Any]:
    """`ragged` in float32, as users run it."""
    return train(launch, make_trainer(launch, 11, options={"num_train_epochs": 2}), "ragged_float32")


@case()
def ragged_accumulates(launch: Launch) -> dict[str, Any]:
    """11 rows in updates of 8: the last has 3, in 2 micro-batches on one process, in 1 on each of two."""
    options = {"per_device_train_batch_size": 2, "global_batch_size": 8, "num_train_epochs": 2}
    return train(launch, make_trainer(launch, 11, options=options | _SGD), "ragged_accumulates")


@case()
def idle(launch: Launch) -> dict[str, Any]:
    """9 rows in updates of 4: the last is one row, and the second of two processes has none of its own."""
    return train(launch, make_trainer(launch, 9, options={"num_train_epochs": 2}), "idle")


@case()
def idle_accumulates(launch: Launch) -> dict[str, Any]:
    """The same in micro-batches of one row."""
    options = {"per_device_train_batch_size": 1, "num_train_epochs": 2}
    return train(launch, make_trainer(launch, 9, options=options), "idle_accumulates")


@case()
def one_row(launch: Launch) -> dict[str, Any]:
    """One row in all."""
    return train(launch, make_trainer(launch, 1, options={"num_train_epochs": 2}), "one_row")


@case()
def drops_last(launch: Launch) -> dict[str, Any]:
    """11 rows, the incomplete update left out."""
    return train(launch, make_trainer(launch, 11, options={"dataloader_drop_last": True}), "drops_last")


@case()
def chat_instance(launch: Launch) -> dict[str, Any]:
    """Chat data and a model instance, whose reference is a copy in memory."""
    rows = preference_rows(11, "chat")
    trainer = make_trainer(launch, rows, model=tiny_llama(seed=3), processing_class=tiny_tokenizer())
    return train(launch, trainer, "chat_instance")


@case()
def from_file(launch: Launch) -> dict[str, Any]:
    """Rows of a JSONL file, so that all processes write to one cache of `datasets`."""
    from datasets import load_dataset

    path = launch.folder / f"rows_of_rank{launch.rank}.jsonl"
    preference_rows(11).to_json(path)
    if launch.num_processes > 1:
        torch.distributed.barrier()
    path = launch.folder / "rows_of_rank0.jsonl"
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(launch.folder / "datasets"))
    return train(launch, make_trainer(launch, rows), "from_file")


@case()
def trl_config(launch: Launch) -> dict[str, Any]:
    """A plain `trl.DPOConfig`: TRL's tokens, optimizer and schedule, and gradient checkpointing."""
    from trl import DPOConfig

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


@case()
def smoothed(launch: Launch) -> dict[str, Any]:
    """Conservative DPO."""
    return train(launch, make_trainer(launch, 11, options={"label_smoothing": 0.1}), "smoothed")


@case()
def reference_free(launch: Launch) -> dict[str, Any]:
    """Rewards are beta log pi, so that `predict` gives the log-probabilities of each row."""
    rows = preference_rows(9, start=40)
    trainer = make_trainer(launch, 11, options={"reference_free": True}, eval_dataset=rows)
    return train(launch, trainer, "reference_free") | evaluate(trainer, rows) | {"beta": trainer.beta}


@case()
def synced_reference(launch: Launch) -> dict[str, Any]:
    """TR-DPO: the reference follows the policy."""
    options = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
    return train(launch, make_trainer(launch, 11, options=options), "synced_reference")


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@case()
def lora(launch: Launch) -> dict[str, Any]:
    """A fresh adapter under gradient checkpointing; the reference is the model with the adapter off."""
    rows = preference_rows(9, start=40)
    options = _SGD | {"gradient_checkpointing": True}
    trainer = make_trainer(launch, 11, options=options, peft_config=_lora(), eval_dataset=rows)
    return train(launch, trainer, "lora") | evaluate(trainer, rows)


@case()
def trained_adapter(launch: Launch) -> dict[str, Any]:
    """A `PeftModel` whose adapter is not at 0; the reference is TRL's frozen copy of the adapter."""
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = get_peft_model(tiny_llama(), _lora())
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    trainer = make_trainer(launch, 11, options=_SGD, model=model, processing_class=tiny_tokenizer())
    return train(launch, trainer, "trained_adapter")


def _rankings(n: int, start: int = 0) -> Any:
    """Rows of 2 to 9 completions, some of them tied."""
    from datasets import Dataset

    rows = []
    for i in range(start, start + n):
        size = 2 + 3 * i % 8
        completions = [f" It was number {j} of {size}, {'really ' * (j % 3)}so." for j in range(size)]
        ranks = [max(j - i % 2, 0) if size > 2 else j for j in range(size)]
        rows.append({"prompt": f"What do you say about film {i}?", "completions": completions, "ranks": ranks})
    return Dataset.from_list(rows)


def _rank(
    launch: Launch, name: str, before: Callable[[], None] = lambda: None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    from transformers import PrinterCallback

    from trl_dpo_ext import RankingDPOConfig, RankingDPOTrainer

    pairwise = make_config(launch, **_SGD | options)
    shared = {
        name: getattr(pairwise, name) for name in RankingDPOConfig.__dataclass_fields__ if hasattr(pairwise, name)
    }
    del shared["gradient_accumulation_steps"]
    args = RankingDPOConfig(**shared)
    before()
    trainer = RankingDPOTrainer(
        launch.model, args=args, train_dataset=_rankings(11), eval_dataset=_rankings(9, start=40)
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, train(launch, trainer, name)


@case()
def ranks(launch: Launch) -> dict[str, Any]:
    """11 rankings of 2 to 9 completions in updates of 4."""
    trainer, trained = _rank(launch, "ranks")
    return trained | evaluate(trainer, _rankings(9, start=40))


@case()
def ranks_in_parts(launch: Launch) -> dict[str, Any]:
    """The same, two completions in memory at a time."""
    return _rank(launch, "ranks_in_parts", completions_per_forward=2)[1]


@case()
def ranks_cached(launch: Launch) -> dict[str, Any]:
    """The same with cached reference log-probabilities."""
    options = {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(launch.folder / "cache")}
    trainer, trained = _rank(launch, "ranks_cached", **options)
    return trained | {"metrics": trainer.evaluate()}


@case()
def unlikelihood(launch: Launch) -> dict[str, Any]:
    """The paper's baseline, whose rewards are logged against the start of training."""
    return _baseline(launch, "Unlikelihood", "unlikelihood", alpha=0.5, reference_free=False)


@case()
def preferred_ft(launch: Launch) -> dict[str, Any]:
    """The mean over an update's answer tokens, which processes and micro-batches have different numbers of."""
    options = {"per_device_train_batch_size": 1, "loss_reduction": "token_mean"}
    return _baseline(launch, "PreferredFT", "preferred_ft", **options)


def _baseline(launch: Launch, method: str, name: str, **options: Any) -> dict[str, Any]:
    from transformers import PrinterCallback

    import trl_dpo_ext

    own = {key: options.pop(key) for key in ("alpha", "loss_reduction", "reference_free") if key in options}
    shared = make_config(launch, **_SGD | {"learning_rate": 0.01} | options)
    config = getattr(trl_dpo_ext, f"{method}Config")
    kept = {key: getattr(shared, key) for key in config.__dataclass_fields__ if hasattr(shared, key)}
    del kept["gradient_accumulation_steps"], kept["reference_free"]
    trainer = getattr(trl_dpo_ext, f"{method}Trainer")(
        launch.model,
        args=config(**kept | own),
        train_dataset=preference_rows(11),
        eval_dataset=preference_rows(9, start=40),
    )
    trainer.remove_callback(PrinterCallback)
    trained = train(launch, trainer, name)
    return trained | {"metrics": trainer.evaluate()}


@case()
def vision(launch: Launch) -> dict[str, Any]:
    """A vision-language model on 7 rows with images, evaluated on 5."""
    return _vision(launch, "vision")


def _vision(launch: Launch, name: str, **options: Any) -> dict[str, Any]:
    rows = preference_rows(5, "vision", start=20)
    trainer = make_trainer(
        launch,
        preference_rows(7, "vision"),
        options=_SGD | {"learning_rate": 0.01} | options,
        model=tiny_vlm(),
        processing_class=tiny_processor(),
        eval_dataset=rows,
    )
    return train(launch, trainer, name) | evaluate(trainer, rows)


@case()
def streams(launch: Launch) -> dict[str, Any]:
    """12 rows of a streaming data set of one shard."""
    rows = preference_rows(12).to_iterable_dataset()
    return train(launch, make_trainer(launch, rows, options={"max_steps": 3}), "streams")


# Checkpoints


@case()
def resumes(launch: Launch) -> dict[str, Any]:
    """12 rows, from the checkpoint in the middle of the epoch."""
    return _resumes(launch, 12, "resumes")


@case()
def resumes_ragged(launch: Launch) -> dict[str, Any]:
    """11 rows, the same: the last update of the resumed epoch is short."""
    return _resumes(launch, 11, "resumes_ragged")


@case()
def resumes_experts(launch: Launch) -> dict[str, Any]:
    """A mixture of experts, whose weights are saved in another form, grouped by length, within the second epoch."""

    def model() -> dict[str, Any]:
        return {"model": tiny_moe(), "processing_class": tiny_tokenizer()}

    options = {"num_train_epochs": 2, "train_sampling_strategy": "group_by_length"}
    return _resumes(launch, 12, "resumes_experts", after=4, arguments=model, **options)


def _resumes(
    launch: Launch,
    rows: int,
    name: str,
    *,
    after: int = RESUME_AFTER,
    arguments: Callable[[], dict[str, Any]] = dict,
    **options: Any,
) -> dict[str, Any]:
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


@case()
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


# Evaluation and prediction


@case()
def evaluates(launch: Launch) -> dict[str, Any]:
    """9 rows in batches of 4."""
    rows = preference_rows(9, start=40)

    def compute_metrics(prediction: Any) -> dict[str, float]:
        chosen, rejected = prediction.predictions.T
        return {"rows": len(chosen), "own_margin": float((chosen - rejected).mean())}

    trainer = make_trainer(launch, eval_dataset=rows, ref_model=explicit_reference(), compute_metrics=compute_metrics)
    return evaluate(trainer, rows)


@case()
def evaluates_sets(launch: Launch) -> dict[str, Any]:
    """Two sets, of 9 and 5 rows."""
    sets = {"long": preference_rows(9, start=40), "short": preference_rows(5, start=60)}
    options = {"folder": "sets", "log_samples": 3, "max_length": 48}
    trainer = make_trainer(launch, eval_dataset=sets, ref_model=explicit_reference(), options=options)
    return {
        "metrics": trainer.evaluate(),
        "predictions": {name: trainer.predict(rows).predictions.tolist() for name, rows in sets.items()},
        "run_log": _run_log(trainer),
    }


def _run_log(trainer: Any) -> dict[str, list]:
    trainer.accelerator.wait_for_everyone()
    files = Path(trainer.args.output_dir, "run_log").glob("*.jsonl")
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in files}


@case()
def predicts(launch: Launch) -> dict[str, Any]:
    """7 rows, and the first of them alone."""
    trainer = make_trainer(launch, ref_model=explicit_reference())
    outputs = {"seven": trainer.predict(preference_rows(7)), "one": trainer.predict(preference_rows(1))}
    return {
        name: {
            "predictions": output.predictions.tolist(),
            "label_ids": output.label_ids.tolist(),
            "metrics": output.metrics,
        }
        for name, output in outputs.items()
    }


# A reference that is cached or brought along


def _files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def _cached_options(folder: Path) -> dict[str, Any]:
    return {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(folder), "num_train_epochs": 2}


@case()
def cached(launch: Launch) -> dict[str, Any]:
    """`ragged` with its reference cached; a second trainer, of another beta and output folder, reads the same file."""
    folder = launch.folder / "cache"
    trainer = make_trainer(launch, 11, options=_cached_options(folder))
    logps = [list(trainer.train_dataset[name]) for name in ("ref_chosen_logps", "ref_rejected_logps")]
    result = train(launch, trainer, "cached")
    files = _files(folder)
    make_trainer(launch, 11, options=_cached_options(folder) | {"folder": "second", "beta": 0.5})
    return result | {"logps": logps, "files": files, "files_after_second": _files(folder)}


@case(TWO_PROCESSES_ONLY)
def cached_before(launch: Launch) -> dict[str, Any]:
    """`ragged` with the file that `cached` wrote in the launch before."""
    folder = launch.reuse / "cached" / "cache"
    before = _files(folder)
    result = train(launch, make_trainer(launch, 11, options=_cached_options(folder)), "cached_before")
    return result | {"files": before, "files_after_second": _files(folder)}


@case()
def cached_evaluates(launch: Launch) -> dict[str, Any]:
    """`evaluates` with its reference cached."""
    rows = preference_rows(9, start=40)
    options = _cached_options(launch.folder / "cache")
    trainer = make_trainer(launch, options=options, eval_dataset=rows, ref_model=explicit_reference())
    return evaluate(trainer, rows)


@case()
def brought(launch: Launch) -> dict[str, Any]:
    """Reference log-probabilities that the rows bring."""
    rows = preference_rows(11)
    rows = rows.add_column("ref_chosen_logps", [-200.0 - i for i in range(11)])
    rows = rows.add_column("ref_rejected_logps", [-210.0 + i for i in range(11)])
    return train(launch, make_trainer(launch, rows), "brought")


# Failures that every process reports by itself


@case()
def nonfinite(launch: Launch) -> dict[str, Any]:
    """Row 7, the last of the second update and on the second of two processes, has an infinite reference."""
    rows = preference_rows(12).add_column("ref_chosen_logps", [-200.0] * 12)
    trainer = make_trainer(launch, rows.add_column("ref_rejected_logps", [-200.0] * 12))
    # Not in the user's rows, where it would be refused before
    poisoned = [-200.0 if i != 7 else float("-inf") for i in range(12)]
    prepared = trainer.train_dataset.remove_columns("ref_chosen_logps")
    trainer.train_dataset = prepared.add_column("ref_chosen_logps", poisoned)
    return _refusal(trainer)


@case()
def wrong_start(launch: Launch) -> dict[str, Any]:
    """An adapter that does not start at 0, beside which adapter-off is the wrong reference."""
    config = _lora()
    config.init_lora_weights = False
    return _refusal(make_trainer(launch, peft_config=config))


@case()
def refused_row(launch: Launch) -> dict[str, Any]:
    """`empty_prompt`, and the user's script goes on."""
    try:
        empty_prompt(launch)
    except ValueError as error:
        return {"message": str(error)}
    return {"message": ""}


@case(TWO_PROCESSES_ONLY)
def refused_in_one_copy(launch: Launch) -> dict[str, Any]:
    """Row 7 is bad in the copy of one process alone, be it the first to prepare its rows or the last."""
    messages = {}
    for rank in range(launch.num_processes):
        for kind, make in _BAD_ROWS.items():
            try:
                make(launch, launch.rank == rank)
            except ValueError as error:
                messages[f"{kind}, {rank}"] = str(error)
    return {"messages": messages}


def _one_prompt(launch: Launch, bad: bool) -> None:
    from datasets import Dataset

    rows = preference_rows(12).to_list()
    rows[7]["prompt"] = "" if bad else rows[7]["prompt"]
    make_trainer(launch, Dataset.from_list(rows))


def _one_ranking(launch: Launch, bad: bool) -> None:
    from datasets import Dataset

    from trl_dpo_ext import RankingDPOConfig, RankingDPOTrainer

    rows = _rankings(11).to_list()
    rows[7]["ranks"] = [0] if bad else rows[7]["ranks"]
    args = RankingDPOConfig(str(launch.folder / "ranks"), use_cpu=True, gradient_checkpointing=False, report_to="none")
    RankingDPOTrainer(launch.model, args=args, train_dataset=Dataset.from_list(rows))


def _one_template(launch: Launch, bad: bool) -> None:
    # In the middle of TRL's own preparation, where processes take turns
    tokenizer = tiny_tokenizer()
    if bad:
        tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    make_trainer(launch, preference_rows(12, "chat"), processing_class=tokenizer)


_BAD_ROWS: dict[str, Callable[[Launch, bool], Any]] = {
    "text": _one_prompt,
    "ranking": _one_ranking,
    "template": _one_template,
    "one row less": lambda launch, bad: make_trainer(launch, 11 if bad else 12),
}


def _refusal(trainer: Any) -> dict[str, Any]:
    message = ""
    try:
        trainer.train()
    except ValueError as error:
        message = str(error)
    return {"message": message, "updates": trainer.state.global_step}


# TRL's own code


@case()
def hinge(launch: Launch) -> dict[str, Any]:
    """A loss of TRL's own on 11 rows in updates of 4."""
    return train(launch, make_trainer(launch, 11, options={"loss_type": "hinge"}), "hinge")


@case()
def hinge_evaluates(launch: Launch) -> dict[str, Any]:
    """The same loss on 11 rows in batches of 4."""
    rows = preference_rows(11, start=40)
    options = {"loss_type": "hinge"}
    trainer = make_trainer(launch, options=options, eval_dataset=rows, ref_model=explicit_reference())
    return evaluate(trainer, rows)


@case()
def vision_ipo(launch: Launch) -> dict[str, Any]:
    """A loss of TRL's own on 7 rows with images."""
    return _vision(launch, "vision_ipo", loss_type="ipo")


@case()
def streams_evaluates(launch: Launch) -> dict[str, Any]:
    """The rows of `evaluates` as a streaming data set."""
    rows = preference_rows(9, start=40)
    trainer = make_trainer(launch, eval_dataset=rows.to_iterable_dataset(), ref_model=explicit_reference())
    return {"metrics": trainer.evaluate()}


# Sharded weights. Last: FSDP leaves its settings in the environment.


@case(TWO_PROCESSES_ONLY)
def sharded(launch: Launch) -> dict[str, Any]:
    """`ragged` under FSDP2, evaluated like `evaluates` and saved."""
    rows = preference_rows(9, start=40)
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "log_samples": 3}
    trainer = _sharded(launch, options | {"folder": "sharded"}, eval_dataset=rows)
    result = train(launch, trainer, "sharded")
    return result | {"shards": _shards(trainer)} | evaluate(trainer, rows) | {"run_log": _run_log(trainer)}


@case(TWO_PROCESSES_ONLY)
def sharded_lora(launch: Launch) -> dict[str, Any]:
    """`lora` under FSDP2."""
    trainer = _sharded(launch, _SGD, peft_config=_lora())
    return train(launch, trainer, "sharded_lora") | {"shards": _shards(trainer)}


@case(TWO_PROCESSES_ONLY)
def sharded_ranks(launch: Launch) -> dict[str, Any]:
    """`ranks` under FSDP2, two completions in memory at a time."""
    trainer, trained = _rank(launch, "sharded_ranks", before=_not_ddp, completions_per_forward=2, **FSDP2)
    return trained | {"shards": _shards(trainer)}


FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}


def _not_ddp() -> None:
    # On a CPU accelerate leaves FSDP out without a word and trains under DDP
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _sharded(launch: Launch, options: dict[str, Any], **arguments: Any) -> Any:
    args = make_config(launch, **FSDP2, **options)
    _not_ddp()
    return make_trainer(launch, 11, args=args, **arguments)


def _shards(trainer: Any) -> dict[str, Any]:
    from torch.distributed.tensor import DTensor

    models = {"policy": trainer.model} | ({"reference": trainer.ref_model} if trainer.ref_model else {})
    kind = trainer.accelerator.distributed_type.value
    return {"distributed_type": kind, "prompts": trainer.layout_description} | {
        name: [sum(isinstance(p, DTensor) for p in model.parameters()), len(list(model.parameters()))]
        for name, model in models.items()
    }


# DeepSpeed. In a launch of their own: accelerate's switch for it stays in the environment.


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
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "log_samples": 3} | _zero(3)
    trainer = make_trainer(launch, 11, options=options, eval_dataset=rows)
    result = train(launch, trainer, "zero3")
    trainer.save_model(str(launch.folder / "saved"))
    return result | {"parts": _parts(trainer)} | evaluate(trainer, rows) | {"run_log": _run_log(trainer)}


@case(ZERO)
def zero3_resumes(launch: Launch) -> dict[str, Any]:
    """`resumes_ragged` under ZeRO-3."""
    return _resumes(launch, 11, "zero3_resumes", **_zero(3))


@case(ZERO)
def zero3_accumulates(launch: Launch) -> dict[str, Any]:
    """`ragged_accumulates` under ZeRO-3."""
    options = {"per_device_train_batch_size": 2, "global_batch_size": 8, "num_train_epochs": 2}
    trainer = make_trainer(launch, 11, options=options | _SGD | _zero(3))
    return train(launch, trainer, "zero3_accumulates") | {"parts": _parts(trainer)}


@case(ZERO)
def zero3_lora(launch: Launch) -> dict[str, Any]:
    """`lora` under ZeRO-3."""
    options = _SGD | {"gradient_checkpointing": True} | _zero(3)
    trainer = make_trainer(launch, 11, options=options, peft_config=_lora())
    return train(launch, trainer, "zero3_lora") | {"parts": _parts(trainer)}


@case(ZERO)
def zero3_cached(launch: Launch) -> dict[str, Any]:
    """`cached` under ZeRO-3."""
    folder = launch.folder / "cache"
    trainer = make_trainer(launch, 11, options=_cached_options(folder) | _zero(3))
    logps = [list(trainer.train_dataset[name]) for name in ("ref_chosen_logps", "ref_rejected_logps")]
    return train(launch, trainer, "zero3_cached") | {"logps": logps, "files": _files(folder)}


@case(ZERO)
def zero2_cached(launch: Launch) -> dict[str, Any]:
    """`ragged` under ZeRO-2 with the file that `cached` wrote in the launch before."""
    folder = launch.reuse / "cached" / "cache"
    before = _files(folder)
    result = train(launch, make_trainer(launch, 11, options=_cached_options(folder) | _zero(2)), "zero2_cached")
    return result | {"files": before, "files_after": _files(folder)}


@case(ZERO)
def zero3_in_parts(launch: Launch) -> dict[str, Any]:
    """`zero3_ranks` without gradient checkpointing."""
    try:
        _rank(launch, "zero3_in_parts", completions_per_forward=2, **_zero(3))
    except ValueError as error:
        return {"message": str(error)}
    return {"message": ""}


@case(ZERO)
def zero3_ranks(launch: Launch) -> dict[str, Any]:
    """`ranks` under ZeRO-3, two completions in memory at a time."""
    options = {"gradient_checkpointing": True, "completions_per_forward": 2}
    trainer, trained = _rank(launch, "zero3_ranks", **options, **_zero(3))
    return trained | {"parts": _parts(trainer)}


def _parts(trainer: Any) -> dict[str, Any]:
    models = {"policy": trainer.model} | ({"reference": trainer.ref_model} if trainer.ref_model else {})
    kind = trainer.accelerator.distributed_type.value
    return {"distributed_type": kind, "prompts": trainer.layout_description} | {
        name: [sum(hasattr(p, "ds_id") for p in model.parameters()), len(list(model.parameters()))]
        for name, model in models.items()
    }


# Failures that end the launch


@case(FATAL)
def none_in_a_row(launch: Launch) -> dict[str, Any]:
    """Row 7 has no rejected answer."""
    from datasets import Dataset

    rows = preference_rows(12).to_list()
    rows[7]["rejected"] = None
    return train(launch, make_trainer(launch, Dataset.from_list(rows)), "none_in_a_row")


@case(FATAL)
def empty_prompt(launch: Launch) -> dict[str, Any]:
    """The prompt of row 7 has no token, which every process finds by itself."""
    from datasets import Dataset

    rows = preference_rows(12).to_list()
    rows[7]["prompt"] = ""
    return train(launch, make_trainer(launch, Dataset.from_list(rows)), "empty_prompt")


@case(FATAL)
def loses_a_process(launch: Launch) -> dict[str, Any]:
    """The last process is killed in the update after the checkpoint of `resumes_ragged`."""
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        # Gradients are summed by now, so the main process is done with the checkpoint
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == RESUME_AFTER and launch.rank == launch.num_processes - 1:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer = make_trainer(launch, 11, options={"save_strategy": "steps", "save_steps": RESUME_AFTER})
    trainer.add_callback(Kill())
    return train(launch, trainer, "loses_a_process")


def cases_for(num_processes: int) -> list[str]:
    """The cases that a launch can run one after the other."""
    left_out = ZERO + FATAL + AFTER_ANOTHER + (TWO_PROCESSES_ONLY if num_processes == 1 else [])
    return [name for name in CASES if name not in left_out]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", action="append", required=True, choices=list(CASES))
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reuse", type=Path)
    given = parser.parse_args()

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rank, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if set(given.case) & set(ZERO):
        # On a CPU accelerate starts torch's process group and not DeepSpeed's beside it
        from deepspeed import comm

        comm.init_distributed("gloo", auto_mpi_discovery=False)
    for name in given.case:
        folder = given.out / name
        folder.mkdir(parents=True, exist_ok=True)
        launch = Launch(num_processes, rank, given.model, given.out, folder, given.reuse or given.out)
        start = time.perf_counter()
        result = {}
        try:
            with nullcontext() if name in IN_FLOAT32 else in_float64():
                result = CASES[name](launch)
        except BaseException:
            result = {"traceback": traceback.format_exc()}
            raise
        finally:
            result["seconds"] = time.perf_counter() - start
            (given.out / f"{name}.rank{rank}.json").write_text(json.dumps(result))
    if num_processes > 1:
        # A process that ends with its group still open is aborted now and then, by gloo's threads
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
