"""One way to train on a micro-batch of groups, reduced to an optimizer step that can be timed."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.flops import Work
from benchmarks.shapes import Group


__all__ = ["Contender", "Task"]

# So small that the policy hardly moves, whatever the number of steps
_LEARNING_RATE = 1e-6

Batch = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """
    What all contenders are given.

    Args:
        model ([`~transformers.PreTrainedModel`]): Where training starts, to be copied.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): Tokenizer.
        batches (`list[list[Group]]`): Micro-batches of groups.
        folder (`str`): Folder for what trainers write.
        device (`str`): `"cpu"` or `"cuda"`.
        bf16 (`bool`): Whether the forward runs under bf16 autocast.
        lora (`bool`): Whether only a LoRA adapter is trained.
        most_tokens (`int`, *optional*): Most tokens of a forward with gradient, as many as fit into memory.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    batches: list[list[Group]]
    folder: str
    device: str
    bf16: bool
    lora: bool
    most_tokens: int | None = None

    def micro_batch_size(self, tokens_of: Callable[[list[Group]], int]) -> int:
        """
        Groups of a contender's micro-batches: the most that divide a batch and fit into `most_tokens`.

        Args:
            tokens_of (`Callable`): Tokens that the contender computes at once for a list of groups.
        """
        groups = len(self.batches[0])
        for size in range(groups, 1, -1):
            parts = [batch[first : first + size] for batch in self.batches for first in range(0, groups, size)]
            if groups % size == 0 and max(map(tokens_of, parts)) <= (self.most_tokens or math.inf):
                return size
        return 1

    @property
    def config(self) -> dict[str, Any]:
        """Options that the trainers' configs share."""
        return {
            "output_dir": self.folder,
            "per_device_train_batch_size": len(self.batches[0]),
            "max_length": None,
            "gradient_checkpointing": False,
            "bf16": self.bf16,
            "use_cpu": self.device == "cpu",
            "report_to": "none",
        }


class Contender:
    """
    A model with its optimizer and its batches.

    Args:
        model (`nn.Module`):
            Policy.
        ref_model (`nn.Module`, *optional*):
            Reference that is in memory.
        loss_of (`Callable`):
            Mean loss of one collated micro-batch, under autocast if the task says so.
        batches (`list[list[dict]]`):
            For each of the task's batches the micro-batches of one optimizer step, equally many rows in each.
        work_of (`Callable`):
            What the policy's forwards over a batch of the task compute, given the batch's number and the shapes
            `(rows, length)` of the token ids in these forwards.
        path (`str`):
            How attention is computed, in words.
    """

    def __init__(
        self,
        model: nn.Module,
        ref_model: nn.Module | None,
        loss_of: Callable[[Batch], Tensor],
        batches: list[list[Batch]],
        work_of: Callable[[int, list[tuple[int, int]]], Work],
        path: str,
    ):
        self.model = model.train()
        self.ref_model = ref_model
        self.loss_of = loss_of
        device = next(model.parameters()).device
        self.batches = [[_to(device, batch) for batch in step] for step in batches]
        self.work_of = work_of
        self.path = path
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # HF's default, which the floor then has as well
        self.optimizer = torch.optim.AdamW(self.trained, lr=_LEARNING_RATE, fused=True)

    def accumulate(self, number: int, most: int | None = None) -> Tensor:
        """Adds up the gradients of a batch, or of its first `most` micro-batches; returns the mean loss."""
        step = self.batches[number % len(self.batches)][:most]
        total = torch.zeros((), device=self.trained[0].device)
        for batch in step:
            loss = self.loss_of(dict(batch)) / len(step)
            loss.backward()
            total += loss.detach()
        return total

    def gradient_norm(self) -> float:
        """Norm of the gradients that have been added up."""
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def update(self) -> None:
        """Updates the weights and forgets the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def num_bytes(self) -> int:
        """Bytes that are in memory between steps: weights of policy and reference, and the optimizer's state."""
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in self._kept()}.values())

    def tensors(self) -> list[Tensor]:
        """All that is on the device: what is in memory between steps, and the batches."""
        batches = (value for step in self.batches for batch in step for value in batch.values())
        return [*self._kept(), *(value for value in batches if isinstance(value, Tensor))]

    @contextmanager
    def forward_shapes(self) -> Iterator[list[tuple[int, int]]]:
        """Collects the shapes of the token ids that the policy embeds."""
        shapes: list[tuple[int, int]] = []

        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if torch.is_grad_enabled():  # the reference, which may be the same model, runs without
                shapes.append((output.size(0), output.size(1)))

        embedding: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        hook = embedding.register_forward_hook(record)
        try:
            yield shapes
        finally:
            hook.remove()

    def _kept(self) -> Iterable[Tensor]:
        for model in (self.model, self.ref_model):
            if model is not None:
                yield from model.parameters()
                yield from model.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _to(device: torch.device, batch: Batch) -> Batch:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
