"""Times the optimizer steps of several contenders on the same data, one after the other in rotating order."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from benchmarks.contender import Contender


__all__ = ["GIB", "Measurement", "check_first_steps", "measure"]

GIB = 2**30

# Share of a GPU's memory that contenders may take between their steps; beyond it they wait on the host
_MOST_RESIDENT = 0.5


@dataclass
class Measurement:
    """
    What was found of one contender.

    Args:
        seconds (`list[float]`): Of each timed step.
        first_loss, first_gradient_norm (`float`): Of the first batch (TRL with K > 2: of its first micro-batch).
        padding_share (`float`): Share of the computed tokens that is padding.
        step_gib, peak_gib (`float`, *optional*): On a GPU, the most memory that a step takes beyond what is there
            between steps (activations and gradients), and with it (weights and optimizer state).
    """

    first_loss: float
    first_gradient_norm: float
    padding_share: float
    seconds: list[float] = field(default_factory=list)
    step_gib: float | None = None
    peak_gib: float | None = None


def measure(contenders: Mapping[str, Contender], device: str, repeats: int, bar: tqdm) -> dict[str, Measurement]:
    """Warms every contender up once, then times each once a repeat. Every measurement advances `bar` by one."""
    parks = device == "cuda" and _needed(contenders) > _MOST_RESIDENT * torch.cuda.mem_get_info()[1]
    if parks:
        for contender in contenders.values():
            contender.to("cpu")

    found = {}
    for name, contender in contenders.items():
        if parks:
            contender.to(device)
        bar.set_postfix_str(f"{name}, warm-up")
        loss = contender.accumulate(0, most=1).item()
        found[name] = Measurement(loss, contender.gradient_norm(), contender.padding_share)
        contender.update()
        if parks:
            contender.to("cpu")
        bar.update()

    names = list(contenders)
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            contender = contenders[name]
            if parks:
                contender.to(device)
            bar.set_postfix_str(f"{name}, {repeat + 1}/{repeats}")
            _time_step(contender, repeat, device, found[name])
            if parks:
                contender.to("cpu")
            bar.update()
    return found


def check_first_steps(found: Mapping[str, Measurement], completions: int, bf16: bool) -> None:
    """
    Checks that all contenders do the same work: with the policy at its reference the loss is log 2 for TRL's pairs and
    log K! for our groups, and with K = 2 the gradients of TRL and of ours are equal.

    Raises:
        ValueError: If one does not, since its seconds would then mean nothing.
    """
    tolerance = 1e-2 if bf16 else 1e-4
    for name, measurement in found.items():
        if name == "floor":
            continue
        expected = math.log(2) if name.startswith("trl") else math.lgamma(completions + 1)
        if not abs(measurement.first_loss - expected) <= tolerance:
            raise ValueError(
                f"The first loss of `{name}` is {measurement.first_loss:.6f}, not {expected:.6f}: at its start the "
                "policy should be its reference."
            )
    norms = {name: measurement.first_gradient_norm for name, measurement in found.items() if name != "floor"}
    if completions == 2 and not bf16 and max(norms.values(), default=0) > 1.001 * min(norms.values(), default=0):
        raise ValueError(
            f"With K = 2 the first gradients of TRL and of ours should be equal; their norms are {norms}."
        )


def _needed(contenders: Mapping[str, Contender]) -> int:
    # Weights, and the two moments that AdamW is going to keep of what is trained
    moments = sum(2 * parameter.nbytes for contender in contenders.values() for parameter in contender.trained)
    return moments + sum(contender.num_bytes() for contender in contenders.values())


def _time_step(contender: Contender, number: int, device: str, found: Measurement) -> None:
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    contender.accumulate(number)
    contender.update()
    if on_gpu:
        torch.cuda.synchronize()
    found.seconds.append(time.perf_counter() - start)
    if on_gpu:
        # The other contenders are in memory as well, and are not counted
        step = (torch.cuda.max_memory_allocated() - before) / GIB
        found.step_gib = max(step, found.step_gib or 0)
        found.peak_gib = found.step_gib + contender.num_bytes() / GIB
