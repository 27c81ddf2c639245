"""Which kernel a dense mask gets, and what a new shape costs: cuDNN plans for each."""

import statistics

import torch
import torch.nn.functional as F

from benchmarks.gpu_check.environment import BACKENDS
from benchmarks.gpu_check.machine import HALF, Machine
from benchmarks.gpu_check.sections import Found


__all__ = ["check_masks"]


def check_masks(machine: Machine, found: Found) -> None:
    """Puts, with cuDNN and without, the kernel and the milliseconds of a first and a second call into `found`."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for number, label in enumerate(("cudnn on", "cudnn off")):
            torch.backends.cuda.enable_cudnn_sdp(label == "cudnn on")
            found[label] = _new_shapes(machine, shift=number * 13)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _new_shapes(machine: Machine, shift: int) -> Found:
    first: list[float] = []
    second: list[float] = []
    for number in range(machine.size(12, 2)):
        length = machine.size(2000, 64) + 37 * number + shift
        query, key, value = (
            torch.randn(1, 8, length, 64, device=machine.device, dtype=HALF, requires_grad=True) for _ in range(3)
        )
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=machine.device).tril()

        def step(q: torch.Tensor = query, k: torch.Tensor = key, v: torch.Tensor = value, m: torch.Tensor = mask):
            F.scaled_dot_product_attention(q, k, v, attn_mask=m).sum().backward()

        for milliseconds in (first, second):
            milliseconds.append(1e3 * machine.seconds(step))
    return {
        "kernel": BACKENDS[torch._fused_sdp_choice(query, key, value, mask)],
        "first_ms": statistics.median(first),
        "slowest_first_ms": max(first),
        "second_ms": statistics.median(second),
    }
