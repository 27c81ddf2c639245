"""Failures that every process reports by itself, that one reports to the other, and that end the launch."""

import os
import signal
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

from datasets import Dataset
from launch import FATAL, RESUME_AFTER, TWO_PROCESSES_ONLY, Launch, case, make_trainer, train
from tiny import lora_config, preference_rows, ranking_rows, tiny_tokenizer
from transformers import TrainerCallback

from trl_dpo_ext import RankingDPOConfig, RankingDPOTrainer
from trl_dpo_ext.cli import main


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
    return _refusal(make_trainer(launch, peft_config=lora_config(init_lora_weights=False)))


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


@case(TWO_PROCESSES_ONLY)
def misses_a_file(launch: Launch) -> dict[str, Any]:
    """The command `dpo`, whose file of rows is there for the first process alone."""
    path = launch.folder / f"rows_of_rank{launch.rank}.jsonl"
    if launch.rank == 0:
        preference_rows(11).to_json(path)
    options = ["--model_name_or_path", launch.model, "--dataset_name", str(path), "--use_cpu", "true"]
    with redirect_stderr(StringIO()) as said:
        status = main(["dpo", "--output_dir", str(launch.folder / "run"), *options])
    return {"status": status, "said": said.getvalue()}


def _one_prompt(launch: Launch, bad: bool) -> None:
    rows = preference_rows(12).to_list()
    rows[7]["prompt"] = "" if bad else rows[7]["prompt"]
    make_trainer(launch, Dataset.from_list(rows))


def _one_ranking(launch: Launch, bad: bool) -> None:
    rows = ranking_rows(11, [7], [range(7)]).to_list()
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


@case(FATAL)
def none_in_a_row(launch: Launch) -> dict[str, Any]:
    """Row 7 has no rejected answer."""
    rows = preference_rows(12).to_list()
    rows[7]["rejected"] = None
    return train(launch, make_trainer(launch, Dataset.from_list(rows)), "none_in_a_row")


@case(FATAL)
def empty_prompt(launch: Launch) -> dict[str, Any]:
    """The prompt of row 7 has no token, which every process finds by itself."""
    rows = preference_rows(12).to_list()
    rows[7]["prompt"] = ""
    return train(launch, make_trainer(launch, Dataset.from_list(rows)), "empty_prompt")


@case(FATAL)
def loses_a_process(launch: Launch) -> dict[str, Any]:
    """The last process is killed in the update after the checkpoint of `resumes_ragged`."""

    class Kill(TrainerCallback):
        # Gradients are summed by now, so the main process is done with the checkpoint
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == RESUME_AFTER and launch.rank == launch.num_processes - 1:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer = make_trainer(launch, 11, options={"save_strategy": "steps", "save_steps": RESUME_AFTER})
    trainer.add_callback(Kill())
    return train(launch, trainer, "loses_a_process")
