"""`DPOPaperTrainer` on pairs, `RankingDPOTrainer` on more answers than two."""

import copy
from typing import Any

import torch
from datasets import Dataset

from benchmarks.contender import Contender, Task
from benchmarks.models import lora
from benchmarks.shapes import Group
from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer, RankingDPOConfig, RankingDPOTrainer
from trl_dpo_ext.batches import Batch
from trl_dpo_ext.shared_prompt.layout import lay_out
from trl_dpo_ext.shared_prompt.support import DENSE_MASK


__all__ = ["our_contender"]

Trainer = DPOPaperTrainer | RankingDPOTrainer


def our_contender(task: Task, cached: bool, **options: Any) -> Contender:
    """
    This package with TRL's settings and `options` of its own. A step is one micro-batch of groups.

    With `cached` the trainer computes the reference's log-probabilities of the rows when it is built.
    """
    is_pairs = len(task.batches[0][0].answers) == 2
    trainer_class, config_class = (
        (DPOPaperTrainer, DPOPaperConfig) if is_pairs else (RankingDPOTrainer, RankingDPOConfig)
    )
    rows = [_pair(group) if is_pairs else _ranking(group) for batch in task.batches for group in batch]
    size = len(task.batches[0])
    # The reference is computed in the micro-batches that are trained on
    cache: dict[str, Any] = {"precompute_ref_batch_size": size, "ref_logps_cache_dir": task.folder} if cached else {}
    trainer = trainer_class(
        model=copy.deepcopy(task.model),
        args=config_class(
            **task.config,
            preset="trl",
            tokenization="joint",
            precompute_ref_log_probs=cached,
            **cache,
            **options,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=task.tokenizer,
        peft_config=lora() if task.lora else None,
    )
    assert isinstance(trainer.train_dataset, Dataset)
    prepared = trainer.train_dataset.to_list()
    batches = [trainer.data_collator(prepared[first : first + size]) for first in range(0, len(prepared), size)]
    # As `train` does before its first step: the forward then runs under autocast
    model = trainer.accelerator.prepare_model(trainer.model)
    return Contender(
        model=model,
        ref_model=trainer.ref_model,
        loss_of=lambda batch: trainer.compute_loss(model, batch),
        batches=[[batch] for batch in batches],
        padding_share=_padding_share(trainer, batches),
    )


def _pair(group: Group) -> dict[str, list[int]]:
    better, worse = group.answers
    return {"prompt_ids": group.prompt, "chosen_ids": better, "rejected_ids": worse}


def _ranking(group: Group) -> dict[str, list]:
    return {
        "prompt_ids": group.prompt,
        "completion_ids": group.answers,
        "ranks": list(range(len(group.answers))),
    }


def _padding_share(trainer: Trainer, batches: list[dict[str, Any]]) -> float:
    all_groups = [groups for batch in batches if (groups := Batch.of(batch).groups) is not None]
    parts = [part for groups in all_groups for part in groups.chunks(trainer.args.completions_per_forward)]
    laid_out = []
    for part in parts:
        # As the trainer decides it: a dense mask takes rows as long as the longest group
        budget = max(part.sizes) if DENSE_MASK in str(trainer.runner) else None
        if trainer.args.padding_free is False:
            budget = 0
        laid_out.append(lay_out(part, budget, torch.device("cpu")).groups.flatten())
    return (torch.cat(laid_out) == -1).float().mean().item()
