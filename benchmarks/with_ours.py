"""`DPOPaperTrainer` on pairs, `RankingDPOTrainer` on more answers than two."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

from datasets import Dataset
from torch import Tensor

from benchmarks.contender import Contender, Task
from benchmarks.flops import Work, distinct_work, padded_work, row_work
from benchmarks.models import lora
from benchmarks.shapes import Group
from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer, RankingDPOConfig, RankingDPOTrainer
from trl_dpo_ext.shared_prompt.groups import PromptGroups


__all__ = ["our_contender"]


def our_contender(task: Task, cached: bool, attention: str = "sdpa", **options: Any) -> Contender:
    """
    This package with TRL's settings and `options` of its own. A step is one micro-batch of groups, or as many as fit
    into memory.

    Args:
        task ([`~benchmarks.contender.Task`]):
            Model and batches.
        cached (`bool`):
            Whether the trainer computes the reference's log-probabilities of the rows when it is built.
        attention (`str`, *optional*, defaults to `"sdpa"`):
            `attn_implementation` of the model.
        options:
            Options of the trainer's config.
    """
    is_pairs = len(task.batches[0][0].answers) == 2
    trainer_class, config_class = (
        (DPOPaperTrainer, DPOPaperConfig) if is_pairs else (RankingDPOTrainer, RankingDPOConfig)
    )
    rows = [_pair(group) if is_pairs else _ranking(group) for batch in task.batches for group in batch]
    shares, packs = (options.get(name) is not False for name in ("share_prompt", "padding_free"))
    size = task.micro_batch_size(partial(_tokens, shares=shares, packs=packs))
    # The reference is computed in the micro-batches that are trained on
    cache: dict[str, Any] = {"precompute_ref_batch_size": size, "ref_logps_cache_dir": task.folder} if cached else {}
    model = copy.deepcopy(task.model)
    model.set_attn_implementation(attention)
    trainer = trainer_class(
        model=model,
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
    parts = len(task.batches[0]) // size
    # As `train` does before its first step: the forward then runs under autocast
    model = trainer.accelerator.prepare_model(trainer.model)
    path = str(trainer.runner)

    def loss_of(batch: dict[str, Any]) -> Tensor:
        # What is made of the groups is kept with them: an epoch has a batch once
        groups = {name: replace(value) for name, value in batch.items() if isinstance(value, PromptGroups)}
        return trainer.compute_loss(model, batch | groups)

    def work_of(number: int, shapes: list[tuple[int, int]]) -> Work:
        batch = task.batches[number]
        rows = row_work(batch)
        if not (shares or packs):
            return padded_work(shapes, rows.tokens, scored=None if task.device == "cpu" else rows.scored)
        # Without the last tokens of answers, which predict nothing
        last = sum(len(group.answers) for group in batch)
        needed = distinct_work(batch) if shares else replace(rows, tokens=rows.tokens - last)
        work = padded_work(shapes, needed.tokens, rows.scored)
        return work if "dense mask" in path else replace(work, pairs=needed.pairs)

    return Contender(
        model=model,
        ref_model=trainer.ref_model,
        loss_of=loss_of,
        batches=[batches[first : first + parts] for first in range(0, len(batches), parts)],
        work_of=work_of,
        path=path,
    )


def _tokens(groups: list[Group], shares: bool, packs: bool) -> int:
    if not (shares or packs):
        lengths = [len(group.prompt) + len(answer) for group in groups for answer in group.answers]
        return len(lengths) * max(lengths)
    return (distinct_work(groups) if shares else row_work(groups)).tokens


def _pair(group: Group) -> dict[str, list[int]]:
    better, worse = group.answers
    return {"prompt_ids": group.prompt, "chosen_ids": better, "rejected_ids": worse}


def _ranking(group: Group) -> dict[str, list]:
    return {
        "prompt_ids": group.prompt,
        "completion_ids": group.answers,
        "ranks": list(range(len(group.answers))),
    }
