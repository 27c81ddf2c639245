"""`trl.DPOTrainer` on all the pairs of every group."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.backends import cuda
from trl import DPOConfig, DPOTrainer

from benchmarks.contender import Contender, Task
from benchmarks.flops import Work, padded_work, row_work
from benchmarks.models import lora
from benchmarks.shapes import Group


__all__ = ["trl_contender"]


def trl_contender(task: Task, cached: bool, attention: str = "sdpa", cudnn: bool = True) -> Contender:
    """
    TRL as it comes. A step is all the pairs of the groups, in micro-batches of as many pairs as there are groups, or
    of as many as fit into memory.

    Args:
        task ([`~benchmarks.contender.Task`]):
            Model and batches.
        cached (`bool`):
            Whether the batches have the reference's log-probabilities, as with `precompute_ref_log_probs=True`.
        attention (`str`, *optional*, defaults to `"sdpa"`):
            `attn_implementation` of the model.
        cudnn (`bool`, *optional*, defaults to `True`):
            Whether `sdpa` may use cuDNN, which takes masks before other kernels do, and plans for each new shape.
    """
    model = copy.deepcopy(task.model)
    model.set_attn_implementation(attention)
    trainer = DPOTrainer(
        model=model,
        ref_model=None if task.lora else copy.deepcopy(model),
        args=DPOConfig(**task.config),
        # TRL takes no token ids here: the rows that are timed go straight to its collator
        train_dataset=Dataset.from_list([{"prompt": "good", "chosen": " good", "rejected": " bad"}]),
        processing_class=task.tokenizer,
        peft_config=lora() if task.lora else None,
    )
    steps = [_pairs(batch, _ref_logps(trainer, batch) if cached else None) for batch in task.batches]
    if cached:
        trainer.precompute_ref_logps, trainer.ref_model = True, None
    size = task.micro_batch_size(_tokens_of_pairs)
    # As `train` does before its first step: the forward then runs under autocast
    model = trainer.accelerator.prepare_model(trainer.model)

    def loss_of(batch: dict[str, Any]) -> Tensor:
        with nullcontext() if cudnn else _without_cudnn():
            return trainer.compute_loss(model, batch)

    def work_of(number: int, shapes: list[tuple[int, int]]) -> Work:
        batch = task.batches[number]
        rows = sum([row_work(batch)] * (len(batch[0].answers) - 1), Work())  # each answer in its pairs
        # On a CPU TRL's fused head computes all tokens. FlashAttention leaves padding and later keys out
        work = padded_work(shapes, rows.tokens, scored=None if task.device == "cpu" else rows.scored)
        return work if attention == "sdpa" else replace(work, pairs=rows.pairs)

    return Contender(
        model=model,
        ref_model=trainer.ref_model,
        loss_of=loss_of,
        batches=[
            [trainer.data_collator(rows[first : first + size]) for first in range(0, len(rows), size)]
            for rows in steps
        ],
        work_of=work_of,
        path=f"padded rows, {attention}" + ("" if cudnn else " without cuDNN"),
    )


def _tokens_of_pairs(groups: list[Group]) -> int:
    # Of as many pairs as there are groups, the longest ones
    longest = max(len(group.prompt) + max(map(len, group.answers)) for group in groups)
    return 2 * len(groups) * longest


@contextmanager
def _without_cudnn() -> Iterator[None]:
    before = cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        cuda.enable_cudnn_sdp(before)


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
