"""Plain next-token training on the distinct tokens: no method that computes each of them once does less."""

import copy
from functools import partial

import torch
from peft import get_peft_model
from torch import Tensor, nn

from benchmarks.contender import Contender, Task
from benchmarks.flops import padded_work
from benchmarks.models import lora
from benchmarks.shapes import Group, num_tokens


__all__ = ["floor_contender"]


def floor_contender(task: Task) -> Contender:
    """The model's own loss on one row a group, its prompt with all of its answers behind each other."""
    copied = copy.deepcopy(task.model)
    model: nn.Module = get_peft_model(copied, lora()) if task.lora else copied
    size = task.micro_batch_size(_padded_tokens)
    batches = [
        [_collate(batch[first : first + size], task.tokenizer.pad_token_id) for first in range(0, len(batch), size)]
        for batch in task.batches
    ]

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast(task.device, torch.bfloat16, enabled=task.bf16):
            return model(**batch, use_cache=False).loss

    return Contender(
        model=model,
        ref_model=None,
        loss_of=loss_of,
        batches=batches,
        work_of=lambda number, shapes: padded_work(shapes, num_tokens(task.batches[number])),
        path="padded rows, sdpa",
    )


def _padded_tokens(groups: list[Group]) -> int:
    return len(groups) * max(num_tokens([group]) for group in groups)


def _collate(batch: list[Group], pad_token_id: int) -> dict[str, Tensor]:
    rows = [torch.tensor(group.prompt + sum(group.answers, [])) for group in batch]
    pad = partial(torch.nn.utils.rnn.pad_sequence, rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": pad(padding_value=pad_token_id),  # (B, T)
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        "labels": pad(padding_value=-100),
    }
