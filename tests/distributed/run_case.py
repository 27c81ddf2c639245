"""
Trains and evaluates `DPOPaperTrainer` on the cases of `CASES`, in one process or under `torchrun`.

    python run_case.py --model FOLDER --out FOLDER
    torchrun --nproc_per_node 2 run_case.py --model FOLDER --out FOLDER [--case NAME ...] [--reuse FOLDER]

Every process writes `NAME.rank0.json`, `NAME.rank1.json`, ...: what the case returned, its error if it raised, the
number of seconds. The main process writes the trained weights, `NAME.safetensors`. Errors are recorded, so that a case
cannot hide the others; `--raise` lets them out, as a user's script would.

`test_two_processes.py` starts it and compares what 1 and 2 processes wrote.
"""

import argparse
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import preference_rows, tiny_llama, tiny_tokenizer  # noqa: E402


UPDATE = 4  # rows an update, whatever the number of processes


@dataclass
class Launch:
    """Where a case runs."""

    num_processes: int
    rank: int
    model: str
    folder: Path  # what it writes for itself, the same for all ranks
    reuse: Path  # the same of the launch that came before, if there was one
    out: Path


CASES: dict[str, Callable[[Launch], dict[str, Any]]] = {}


def case(run: Callable[[Launch], dict[str, Any]]) -> Callable[[Launch], dict[str, Any]]:
    CASES[run.__name__] = run
    return run


def make_config(launch: Launch, **options: Any):
    from trl_dpo_ext import DPOPaperConfig

    defaults = {
        "use_cpu": True,
        "ddp_timeout": 60,
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
    return DPOPaperConfig(str(launch.folder / options.pop("folder", "run")), **(defaults | options))


def make_trainer(launch: Launch, rows: Any = 12, *, options: dict[str, Any] | None = None, **arguments: Any):
    from trl_dpo_ext import DPOPaperTrainer

    config = arguments.pop("args", None) or make_config(launch, **(options or {}))
    dataset = preference_rows(rows) if isinstance(rows, int) else rows
    return DPOPaperTrainer(**{"model": launch.model, "args": config, "train_dataset": dataset, **arguments})


def train(launch: Launch, trainer: Any, name: str, **arguments: Any) -> dict[str, Any]:
    """Trains, saves the weights on the main process and returns what was logged."""
    from safetensors.torch import save_file

    trainer.train(**arguments)
    weights = {key: tensor.detach().contiguous().clone() for key, tensor in trainer.model.state_dict().items()}
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(weights[key].numpy().tobytes())
    if launch.rank == 0:
        save_file(weights, launch.out / f"{name}.safetensors")
    return {"history": trainer.state.log_history, "weights_sha256": digest.hexdigest()}


def explicit_reference() -> Any:
    """Another model than the policy: rewards are far from 0 without any training."""
    return tiny_llama(seed=1)


# Training


@case
def divides(launch: Launch) -> dict[str, Any]:
    """12 rows, 3 updates, evaluated in between on 5 rows."""
    options = {"eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(launch, options=options, eval_dataset=preference_rows(5, start=40))
    return train(launch, trainer, "divides")


@case
def accumulates(launch: Launch) -> dict[str, Any]:
    """16 rows in 2 updates: 4 micro-batches of 2 on one process, 2 on each of two."""
    trainer = make_trainer(launch, 16, options={"per_device_train_batch_size": 2, "global_batch_size": 8})
    result = train(launch, trainer, "accumulates")
    return result | {"accumulation": trainer.args.gradient_accumulation_steps}


@case
def shuffles(launch: Launch) -> dict[str, Any]:
    """The default order, random, in 2 epochs of 11 rows."""
    options = {"train_sampling_strategy": "random", "num_train_epochs": 2}
    return train(launch, make_trainer(launch, 11, options=options), "shuffles")


@case
def ragged(launch: Launch) -> dict[str, Any]:
    """11 rows in updates of 4: accelerate repeats a row on the second process."""
    return train(launch, make_trainer(launch, 11, options={"num_train_epochs": 2}), "ragged")


@case
def ragged_accumulates(launch: Launch) -> dict[str, Any]:
    """11 rows in updates of 8: the last one has 3 rows, in 2 micro-batches on one process, in 1 on each of two."""
    options = {"per_device_train_batch_size": 2, "global_batch_size": 8, "num_train_epochs": 2}
    return train(launch, make_trainer(launch, 11, options=options), "ragged_accumulates")


@case
def idle_rank(launch: Launch) -> dict[str, Any]:
    """9 rows in updates of 4: the last update is one row, and the second process has none of its own."""
    return train(launch, make_trainer(launch, 9, options={"num_train_epochs": 2}), "idle_rank")


@case
def idle_rank_accumulates(launch: Launch) -> dict[str, Any]:
    """9 rows, micro-batches of one row, updates of 4: the last micro-batch is empty on the second process."""
    options = {"per_device_train_batch_size": 1, "global_batch_size": 4, "num_train_epochs": 2}
    return train(launch, make_trainer(launch, 9, options=options), "idle_rank_accumulates")


@case
def one_row(launch: Launch) -> dict[str, Any]:
    """One row in all: it is the whole update, and the second process repeats it."""
    return train(launch, make_trainer(launch, 1, options={"num_train_epochs": 2}), "one_row")


@case
def chat_instance(launch: Launch) -> dict[str, Any]:
    """Chat data and a model instance, whose reference is a copy in memory."""
    trainer = make_trainer(
        launch, preference_rows(11, "chat"), model=tiny_llama(seed=3), processing_class=tiny_tokenizer()
    )
    return train(launch, trainer, "chat_instance")


@case
def hinge(launch: Launch) -> dict[str, Any]:
    """A loss of TRL's own code, whose scalar is weighted by rows."""
    options = {"loss_type": "hinge", "num_train_epochs": 2}
    trainer = make_trainer(launch, 11, options=options, eval_dataset=preference_rows(9, start=40))
    result = train(launch, trainer, "hinge")
    return result | {"metrics": trainer.evaluate()}


@case
def trl_config(launch: Launch) -> dict[str, Any]:
    """A plain `trl.DPOConfig`: TRL's tokens, optimizer and schedule."""
    from trl import DPOConfig

    args = DPOConfig(
        str(launch.folder / "run"),
        bf16=False,
        use_cpu=True,
        ddp_timeout=60,
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


@case
def smoothed(launch: Launch) -> dict[str, Any]:
    """Conservative DPO."""
    return train(launch, make_trainer(launch, 11, options={"label_smoothing": 0.1}), "smoothed")


@case
def reference_free(launch: Launch) -> dict[str, Any]:
    return train(launch, make_trainer(launch, 11, options={"reference_free": True}), "reference_free")


@case
def checkpointed(launch: Launch) -> dict[str, Any]:
    """Gradient checkpointing, TRL's default."""
    options = {"gradient_checkpointing": True, "num_train_epochs": 2}
    return train(launch, make_trainer(launch, 11, options=options), "checkpointed")


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@case
def lora(launch: Launch) -> dict[str, Any]:
    """A fresh adapter; the reference is the model with the adapter off."""
    options = {"learning_rate": 1e-2, "num_train_epochs": 2, "gradient_checkpointing": True}
    trainer = make_trainer(launch, 11, options=options, peft_config=_lora(), eval_dataset=preference_rows(9, start=40))
    result = train(launch, trainer, "lora")
    return result | {"metrics": trainer.evaluate()}


@case
def trained_adapter(launch: Launch) -> dict[str, Any]:
    """A `PeftModel` whose adapter is not at 0; the reference is TRL's frozen copy of it."""
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = get_peft_model(tiny_llama(), _lora())
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    options = {"learning_rate": 1e-2}
    trainer = make_trainer(launch, 11, options=options, model=model, processing_class=tiny_tokenizer())
    return train(launch, trainer, "trained_adapter")


@case
def synced_reference(launch: Launch) -> dict[str, Any]:
    """TR-DPO: the reference follows the policy every update."""
    options = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5, "num_train_epochs": 2}
    return train(launch, make_trainer(launch, 11, options=options), "synced_reference")


@case
def streams(launch: Launch) -> dict[str, Any]:
    """12 rows of a streaming data set of one shard."""
    rows = preference_rows(12).to_iterable_dataset()
    return train(launch, make_trainer(launch, rows, options={"max_steps": 3}), "streams")


@case
def streams_shards(launch: Launch) -> dict[str, Any]:
    """The same of two shards, as many as processes."""
    rows = preference_rows(12).to_iterable_dataset(num_shards=2)
    result = train(launch, make_trainer(launch, rows, options={"max_steps": 3}), "streams_shards")
    return result | {"tokens": result["history"][-2]["num_tokens"]}


# Resuming


@case
def resumes(launch: Launch) -> dict[str, Any]:
    """6 updates in 2 epochs of 11 rows, straight and from the checkpoint after 2, in the middle of an epoch."""
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    straight = train(launch, make_trainer(launch, 11, options=options), "straight")
    checkpoint = launch.folder / "run" / "checkpoint-2"
    options = {"num_train_epochs": 2, "folder": "resumed"}
    resumed = train(
        launch, make_trainer(launch, 11, options=options), "resumed", resume_from_checkpoint=str(checkpoint)
    )
    state = json.loads((checkpoint / "trl_dpo_ext.json").read_text())
    return {"straight": straight, "resumed": resumed, "state": state}


# Evaluation and prediction


@case
def evaluates(launch: Launch) -> dict[str, Any]:
    """9 rows in batches of 4, against another model."""
    rows = preference_rows(9, start=40)

    def compute_metrics(prediction: Any) -> dict[str, float]:
        chosen, rejected = prediction.predictions.T
        return {"rows": len(chosen), "own_margin": float((chosen - rejected).mean())}

    trainer = make_trainer(launch, eval_dataset=rows, ref_model=explicit_reference(), compute_metrics=compute_metrics)
    metrics = trainer.evaluate()
    output = trainer.predict(rows)
    return {
        "metrics": metrics,
        "test_metrics": output.metrics,
        "predictions": output.predictions.tolist(),
        "label_ids": output.label_ids.tolist(),
    }


@case
def evaluates_sets(launch: Launch) -> dict[str, Any]:
    """Two sets of 9 and 5 rows."""
    sets = {"long": preference_rows(9, start=40), "short": preference_rows(5, start=60)}
    trainer = make_trainer(launch, eval_dataset=sets, ref_model=explicit_reference())
    return {
        "metrics": trainer.evaluate(),
        "predictions": {name: trainer.predict(rows).predictions.tolist() for name, rows in sets.items()},
    }


@case
def predicts(launch: Launch) -> dict[str, Any]:
    """7 rows, and 1 row."""
    trainer = make_trainer(launch, ref_model=explicit_reference())
    found = {}
    for name, rows in {"seven": preference_rows(7), "one": preference_rows(1)}.items():
        output = trainer.predict(rows)
        found[name] = {
            "shape": list(output.predictions.shape),
            "predictions": output.predictions.tolist(),
            "label_ids": output.label_ids.tolist(),
            "metrics": output.metrics,
        }
    return found


@case
def evaluates_hinge(launch: Launch) -> dict[str, Any]:
    """TRL's own loss on 9 rows in batches of 4, against another model."""
    rows = preference_rows(9, start=40)
    trainer = make_trainer(
        launch, options={"loss_type": "hinge"}, eval_dataset=rows, ref_model=explicit_reference()
    )
    return {"metrics": trainer.evaluate(), "predictions": trainer.predict(rows).predictions.tolist()}


# Cached reference


def _cache_files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@case
def cached(launch: Launch) -> dict[str, Any]:
    """In-memory rows and a cached reference, twice: the second trainer reads the file that the first wrote."""
    folder = launch.folder / "cache"
    options = {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(folder), "num_train_epochs": 2}
    trainer = make_trainer(launch, 11, options=options)
    columns = [trainer.train_dataset[name] for name in ("ref_chosen_logps", "ref_rejected_logps")]
    files = _cache_files(folder)
    result = train(launch, trainer, "cached")
    # Another output folder and another beta: the same reference
    make_trainer(launch, 11, options=options | {"folder": "second", "beta": 0.5})
    return result | {"columns": [list(column) for column in columns], "files": files, "again": _cache_files(folder)}


@case
def cached_elsewhere(launch: Launch) -> dict[str, Any]:
    """The file that `cached` wrote in the launch before."""
    folder = launch.reuse / "cached" / "cache"
    before = _cache_files(folder)
    options = {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(folder), "num_train_epochs": 2}
    trainer = make_trainer(launch, 11, options=options)
    result = train(launch, trainer, "cached_elsewhere")
    return result | {"before": before, "after": _cache_files(folder)}


@case
def cached_eval(launch: Launch) -> dict[str, Any]:
    """Cached references of the evaluation rows too, on sizes that do not divide."""
    rows = preference_rows(9, start=40)
    options = {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(launch.folder / "cache")}
    trainer = make_trainer(launch, 11, options=options, eval_dataset=rows, ref_model=explicit_reference())
    return {"metrics": trainer.evaluate(), "predictions": trainer.predict(rows).predictions.tolist()}


@case
def brought(launch: Launch) -> dict[str, Any]:
    """Reference log-probabilities that the rows bring."""
    rows = preference_rows(11)
    rows = rows.add_column("ref_chosen_logps", [-200.0 - i for i in range(11)])
    rows = rows.add_column("ref_rejected_logps", [-210.0 + i for i in range(11)])
    return train(launch, make_trainer(launch, rows), "brought")


# Failures. Each process reports its own.


@case
def nonfinite(launch: Launch) -> dict[str, Any]:
    """A reference log-probability of row 7, of the second update and the second process, is infinite."""
    rows = preference_rows(12)
    rows = rows.add_column("ref_chosen_logps", [-200.0 if i != 7 else float("-inf") for i in range(12)])
    rows = rows.add_column("ref_rejected_logps", [-200.0] * 12)
    trainer = make_trainer(launch, rows)
    try:
        trainer.train()
    except ValueError as error:
        return {"message": str(error), "updates": trainer.state.global_step}
    return {"message": "", "updates": trainer.state.global_step}


@case
def none_in_a_row(launch: Launch) -> dict[str, Any]:
    """Row 7 has no rejected answer."""
    from datasets import Dataset

    rows = preference_rows(12).to_list()
    rows[7]["rejected"] = None
    make_trainer(launch, Dataset.from_list(rows)).train()
    return {}


@case
def empty_prompt(launch: Launch) -> dict[str, Any]:
    """The prompt of row 7 has no token. It is found while the main process tokenises and the others wait."""
    from datasets import Dataset

    rows = preference_rows(12).to_list()
    rows[7]["prompt"] = ""
    make_trainer(launch, Dataset.from_list(rows)).train()
    return {}


@case
def wrong_start(launch: Launch) -> dict[str, Any]:
    """An adapter that does not start at 0, beside which adapter-off is the wrong reference."""
    config = _lora()
    config.init_lora_weights = False
    trainer = make_trainer(launch, peft_config=config)
    trainer.train()
    return {}


FATAL = ("empty_prompt",)  # one process fails while the other waits: only the launcher can end it


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="default: all that can go on")
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reuse", type=Path)
    parser.add_argument("--raise", dest="raises", action="store_true")
    given = parser.parse_args()

    torch.set_num_threads(1)
    rank, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for name in given.case or [name for name in CASES if name not in FATAL]:
        folder = given.out / name
        folder.mkdir(parents=True, exist_ok=True)
        launch = Launch(num_processes, rank, given.model, folder, given.reuse or given.out, given.out)
        start = time.perf_counter()
        torch.manual_seed(0)
        try:
            result = CASES[name](launch)
        except Exception as error:
            if given.raises:
                raise
            result = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        result["seconds"] = time.perf_counter() - start
        (given.out / f"{name}.rank{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
