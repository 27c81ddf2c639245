"""`trl.DPOTrainer` on all the pairs of every group."""

import copy
from itertools import combinations
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from benchmarks.contender import Contender, Task
from benchmarks.models import lora
from benchmarks.shapes import Group


__all__ = ["trl_contender"]


def trl_contender(task: Task, cached: bool) -> Contender:
    """
    TRL as it comes. A step is all the pairs of the groups, in micro-batches of as many pairs as there are groups.

    With `cached` the batches bring the reference's log-probabilities, as with `precompute_ref_log_probs=True`.
    """
    trainer = DPOTrainer(
        model=copy.deepcopy(task.model),
        ref_model=None if task.lora else copy.deepcopy(task.model),
        args=DPOConfig(**task.config),
        # TRL takes no token ids here: the rows that are timed go straight to its collator
        train_dataset=Dataset.from_list([{"prompt": "good", "chosen": " good", "rejected": " bad"}]),
        processing_class=task.tokenizer,
        peft_config=lora() if task.lora else None,
    )
    steps = [_pairs(batch, _ref_logps(trainer, batch) if cached else None) for batch in task.batches]
    if cached:
        trainer.precompute_ref_logps, trainer.ref_model = True, None
    size = len(task.batches[0])
    batches = [
        [trainer.data_collator(rows[first : first + size]) for first in range(0, len(rows), size)] for rows in steps
    ]
    mask = torch.cat([batch["attention_mask"].flatten() for step in batches for batch in step])
    # As `train` does before its first step: the forward then runs under autocast
    model = trainer.accelerator.prepare_model(trainer.model)
    return Contender(
        model=model,
        ref_model=trainer.ref_model,
        loss_of=lambda batch: trainer.compute_loss(model, batch),
        batches=batches,
        padding_share=1 - mask.float().mean().item(),
    )


def _pairs(batch: list[Group], ref_logps: Tensor | None) -> list[dict[str, Any]]:
    rows = []
    for b, group in enumerate(batch):
        for better, worse in combinations(range(len(group.answers)), 2):
            row: dict[str, Any] = _row(group, better, worse)
            if ref_logps is not None:
                row["ref_chosen_logps"] = ref_logps[b, better].item()
                row["ref_rejected_logps"] = ref_logps[b, worse].item()
            rows.append(row)
    return rows


def _row(group: Group, better: int, worse: int) -> dict[str, list[int]]:
    return {"prompt_ids": group.prompt, "chosen_ids": group.answers[better], "rejected_ids": group.answers[worse]}


def _ref_logps(trainer: DPOTrainer, batch: list[Group]) -> Tensor:
    # (B, K), each answer run once: the first half of a group's answers as chosen, the second half as rejected
    model = trainer.model if trainer.ref_model is None else trainer.ref_model
    half = len(batch[0].answers) // 2
    columns = []
    for k in range(half):
        rows = trainer.data_collator([_row(group, k, k + half) for group in batch])
        inputs = {name: value.to(trainer.accelerator.device) for name, value in rows.items()}
        columns.append(torch.stack(trainer.compute_ref_log_probs(model, inputs)))  # (2, B)
    return torch.stack(columns, dim=1).flatten(0, 1).T
