"""One way to train on a micro-batch of groups, reduced to an optimizer step that can be timed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

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
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    batches: list[list[Group]]
    folder: str
    device: str
    bf16: bool
    lora: bool

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
        padding_share (`float`):
            Share of the computed tokens that is padding.
    """

    def __init__(
        self,
        model: nn.Module,
        ref_model: nn.Module | None,
        loss_of: Callable[[Batch], Tensor],
        batches: list[list[Batch]],
        padding_share: float,
    ):
        self.model = model.train()
        self.ref_model = ref_model
        self.loss_of = loss_of
        device = next(model.parameters()).device
        self.batches = [[_to(device, batch) for batch in step] for step in batches]
        self.padding_share = padding_share
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
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in self._tensors()}.values())

    def to(self, device: str) -> None:
        """Moves all of it but the batches."""
        for model in (self.model, self.ref_model):
            if model is not None:
                model.to(device)
        for state in self.optimizer.state.values():
            state.update({name: value.to(device) for name, value in state.items() if isinstance(value, Tensor)})

    def _tensors(self) -> Iterable[Tensor]:
        for model in (self.model, self.ref_model):
            if model is not None:
                yield from model.parameters()
                yield from model.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _to(device: torch.device, batch: Batch) -> Batch:
    return {name: value.to(device) for name, value in batch.items()}
