"""Where the time of a step goes: matrix products, attention, everything else, and a GPU that waits."""

import re
from collections.abc import Iterable

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.command import build_task
from benchmarks.contender import Contender
from benchmarks.contenders import CONTENDERS
from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.sections import Found
from benchmarks.models import build_model
from benchmarks.sizes import SIZES


__all__ = ["by_kind", "kind_of", "measure_profile"]

# By words in the name of a kernel, or of an operator on a CPU; the first that fits
_KINDS = {
    "attention": r"flash|fmha|attention|softmax",
    "products": r"gemm|cutlass|nvjet|cublas|xmma|aten::mm$|aten::bmm|addmm",
    "head": r"_forward_kernel|_backward_kernel",
    "optimizer": r"adam|multi_tensor|foreach",
    "copies": r"memcpy|memset|copy_",
    "gathers": r"index|gather|scatter|embedding",
    "reductions": r"reduce|norm|sum|mean",
}

_CONTENDERS = ("ours cached varlen", "ours cached compiled")


def measure_profile(machine: Machine, found: Found) -> None:
    """Puts the milliseconds of a step by kind of kernel, its launches, and the share the GPU waits into `found`."""
    size = SIZES["tiny" if machine.dry else "gpu"]
    shape = size.shape("hh")
    model = build_model(size.model, size.device)
    task = build_task(model, size, shape, size.num_groups(shape), 1, f"{machine.folder}/profile")
    for name in _CONTENDERS[: machine.size(2, 1)]:
        found[name] = _profile(machine, CONTENDERS[name].build(task))
        machine.free()


def _profile(machine: Machine, contender: Contender) -> Found:
    def step() -> None:
        contender.accumulate(0)
        contender.update()

    for _ in range(machine.size(3, 1)):
        step()
    milliseconds = 1e3 * machine.seconds(step)
    activities = [ProfilerActivity.CPU, *([] if machine.dry else [ProfilerActivity.CUDA])]
    with profile(activities=activities) as profiled:
        machine.seconds(step)
    events = profiled.key_averages()
    if machine.dry:
        kernels = [(event.key, event.self_cpu_time_total / 1e3, event.count) for event in events]
    else:
        on_gpu = (event for event in events if event.device_type == DeviceType.CUDA)
        kernels = [(event.key, event.self_device_time_total / 1e3, event.count) for event in on_gpu]
    busy = sum(time for _, time, _ in kernels)
    return {
        "step_ms": milliseconds,
        "launches": sum(count for _, _, count in kernels),
        "waiting_share": max(1 - busy / milliseconds, 0.0),
        "milliseconds": by_kind((key, time) for key, time, _ in kernels),
        "slowest": [[key[:100], time, count] for key, time, count in sorted(kernels, key=lambda k: -k[1])[:15]],
    }


def kind_of(kernel: str) -> str:
    """Kind of a kernel by its name; `elementwise` if none of the others."""
    name = kernel.lower()
    return next((kind for kind, pattern in _KINDS.items() if re.search(pattern, name)), "elementwise")


def by_kind(kernels: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sums the times of kernels by their kind."""
    sums: dict[str, float] = {}
    for name, time in kernels:
        sums[kind_of(name)] = sums.get(kind_of(name), 0.0) + time
    return sums
