"""Times the optimizer steps of contenders on the same data."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.contender import Contender
from benchmarks.flops import Work
from benchmarks.synchronizations import count_synchronizations


__all__ = ["GIB", "Measurement", "check_first_steps", "measure", "starts_at_its_reference"]

GIB = 2**30


@dataclass
class Measurement:
    """
    What was found of one contender.

    Args:
        path (`str`): How attention is computed, in words.
        first_loss, first_gradient_norm (`float`): Of the first batch (TRL with K > 2: of its first micro-batch).
        synchronizations (`int`): Of a micro-batch, forward and backward.
        seconds (`list[float]`): Of each timed step.
        work (`list[Work]`): What the policy's forwards of each timed step compute.
        step_gib, peak_gib (`float`, *optional*): On a GPU, the most memory that a step takes beyond what is there
            between steps (activations and gradients), and with it (weights and optimizer state).
    """

    path: str
    first_loss: float
    first_gradient_norm: float
    synchronizations: int
    seconds: list[float] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    step_gib: float | None = None
    peak_gib: float | None = None


def measure(contenders: Mapping[str, Contender], device: str, repeats: int, bar: tqdm) -> dict[str, Measurement]:
    """
    Warms every contender up, on a GPU on all its batches, then times each once a repeat, in rotating order.

    A contender advances `bar` by one when it is warm, and by one for each timed step.
    """
    found = {}
    for name, contender in contenders.items():
        bar.set_postfix_str(f"{name}, warm-up")
        found[name] = _warm_up(contender, device)
        bar.update()

    names = list(contenders)
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            bar.set_postfix_str(f"{name}, {repeat + 1}/{repeats}")
            _time_step(contenders[name], repeat, device, found[name])
            bar.update()
    return found


def starts_at_its_reference(contender: str, first_loss: float, completions: int, bf16: bool) -> bool | None:
    """
    Whether the first loss is that of a policy at its reference: log 2 of TRL's pairs, log K! of our groups.

    `None` for the floor, which has no reference. In bf16 a cached reference is rounded in other shapes.
    """
    if contender == "floor":
        return None
    expected = math.log(2) if contender.startswith("trl") else math.lgamma(completions + 1)
    return abs(first_loss - expected) <= (1e-2 if bf16 else 1e-4)


def check_first_steps(found: Mapping[str, Measurement], completions: int, bf16: bool) -> None:
    """
    Checks that all contenders do the same work: at its start a policy is its reference, and with K = 2 the gradients
    of TRL and of ours are equal.

    Raises:
        ValueError: If one does not, since its seconds would then mean nothing.
    """
    for name, measurement in found.items():
        if starts_at_its_reference(name, measurement.first_loss, completions, bf16) is False:
            raise ValueError(
                f"The first loss of `{name}` is {measurement.first_loss:.6f}, which is not that of a policy at its "
                "reference."
            )
    norms = {name: measurement.first_gradient_norm for name, measurement in found.items() if name != "floor"}
    if completions == 2 and not bf16 and max(norms.values(), default=0) > 1.001 * min(norms.values(), default=0):
        raise ValueError(
            f"With K = 2 the first gradients of TRL and of ours should be equal; their norms are {norms}."
        )


def _warm_up(contender: Contender, device: str) -> Measurement:
    losses: list[Tensor] = []

    def micro_batch() -> None:
        losses.append(contender.accumulate(0, most=1))

    synchronizations = count_synchronizations(micro_batch, contender.tensors())
    norm = contender.gradient_norm()
    contender.update()
    if device == "cuda":
        # What is planned or compiled for a new shape is so now, and no longer makes the host wait
        for number in range(len(contender.batches)):
            contender.accumulate(number)
            contender.update()
        synchronizations = count_synchronizations(micro_batch, contender.tensors())
        contender.optimizer.zero_grad()
    return Measurement(contender.path, losses[0].item(), norm, synchronizations)


def _time_step(contender: Contender, number: int, device: str, found: Measurement) -> None:
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with contender.forward_shapes() as shapes:
        start = time.perf_counter()
        contender.accumulate(number)
        contender.update()
        if on_gpu:
            torch.cuda.synchronize()
        found.seconds.append(time.perf_counter() - start)
    found.work.append(contender.work_of(number % len(contender.batches), shapes))
    if on_gpu:
        # Models of other contenders and the one that all are copied from are in memory as well, and not counted
        step = (torch.cuda.max_memory_allocated() - before) / GIB
        found.step_gib = max(step, found.step_gib or 0)
        found.peak_gib = found.step_gib + contender.num_bytes() / GIB
