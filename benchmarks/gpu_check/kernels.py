"""Whether FlashAttention on segments gives the numbers of the dense mask, forward and backward."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu_check.layouts import attend_by_mask, layout_of, states_of
from benchmarks.gpu_check.machine import HALF, Machine
from benchmarks.gpu_check.sections import Found
from trl_dpo_ext.shared_prompt.cascade import cascade, cascade_of
from trl_dpo_ext.shared_prompt.layout import Layout
from trl_dpo_ext.shared_prompt.segments import segments_of
from trl_dpo_ext.shared_prompt.varlen import varlen


__all__ = ["check_kernels", "errors_of"]

# Ragged; completions of one token; segments longer than a block of 128 keys; one completion alone
_RAGGED = [(14, [9, 12, 1]), (7, [3, 8]), (1, [4, 2]), (130, [65, 1, 129, 64]), (257, [33])]

_WINDOWS = (None, 5, 40, 10_000)
_HEADS = ((8, 2), (4, 4), (4, 1))

# The kernel may err this many times as much as the dense mask in the same precision does, and by a rounding of 2**-9
_TIMES, _ROUNDING = 3, 2e-3

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def check_kernels(machine: Machine, found: Found) -> None:
    """Puts the relative errors of every case into `found`, those that are too large into `bad`, and `passed`."""
    lengths = _RAGGED[: machine.size(len(_RAGGED), 3)]
    layout, apart = (layout_of(lengths, machine.device, shares) for shares in (True, False))
    calls = cascade_of(layout)
    cases: dict[str, dict[str, dict[str, float]]] = {}
    found["cases"] = cases
    for size in (64, 128):
        for heads, key_heads in _HEADS:
            what = f"heads {heads}/{key_heads} of {size}"
            for window in _WINDOWS:
                name = f"gathered keys, {what}, window {window}"
                cases[name] = errors_of(_by_segments(layout, window), layout, heads, key_heads, size, window)
            name = f"cascade, {what}"
            cases[name] = errors_of(lambda q, k, v: cascade(q, k, v, calls), layout, heads, key_heads, size)
        cases[f"separate rows, heads of {size}"] = errors_of(_by_segments(apart), apart, 8, 2, size)
    found["strided"] = _takes_strides(layout)
    found["repeats"] = _repeats(layout)
    found["bad"] = [name for name, errors in cases.items() if not _is_good(errors)]
    found["passed"] = not found["bad"] and found["strided"]


def errors_of(
    attend: Attend, layout: Layout, heads: int, key_heads: int, size: int, window: int | None = None
) -> dict[str, dict[str, float]]:
    """
    Relative errors of output and gradients against the dense mask in float32.

    Returns:
        `dict`: For each of `out`, `dq`, `dk`, `dv` the error (`ours`), and that of the dense mask in the same
        precision (`mask`), which is rounding.
    """
    states = states_of(layout, heads, key_heads, size)
    generator = torch.Generator().manual_seed(9)
    weights = torch.randn(states[0].shape, generator=generator).to(states[0].device)

    def run(attend: Attend, dtype: torch.dtype) -> list[Tensor]:
        inputs = [values.detach().to(dtype).requires_grad_() for values in states]
        out = attend(*inputs)
        return [out.float(), *(g.float() for g in torch.autograd.grad((out.float() * weights).sum(), inputs))]

    by_mask = attend_by_mask(layout, window)
    truth, ours, mask = run(by_mask, torch.float32), run(attend, HALF), run(by_mask, HALF)
    return {
        name: {"ours": _relative(one, exact), "mask": _relative(other, exact)}
        for name, one, other, exact in zip(("out", "dq", "dk", "dv"), ours, mask, truth, strict=True)
    }


def _by_segments(layout: Layout, window: int | None = None) -> Attend:
    return lambda q, k, v: varlen(q, k, v, segments_of(layout), window=window)


def _relative(values: Tensor, exact: Tensor) -> float:
    # What the kernel did not write is not a number, and as wrong as can be
    return ((values - exact).norm() / exact.norm()).nan_to_num(nan=math.inf, posinf=math.inf).item()


def _is_good(errors: dict[str, dict[str, float]]) -> bool:
    return all(error["ours"] <= _TIMES * error["mask"] + _ROUNDING for error in errors.values())


def _takes_strides(layout: Layout) -> bool:
    # As layers hand them over: views of `(1, heads, T, D)`
    states = [values.detach() for values in states_of(layout, 8, 2, 64)]
    strided = [values.transpose(0, 1).contiguous().transpose(0, 1) for values in states]
    attend = _by_segments(layout)
    return torch.equal(attend(*states), attend(*strided))


def _repeats(layout: Layout) -> bool:
    # Whether two backwards give the same bits
    def gradients() -> list[Tensor]:
        states = states_of(layout, 8, 2, 64)
        return list(torch.autograd.grad(_by_segments(layout)(*states).float().square().sum(), states))

    return all(torch.equal(one, other) for one, other in zip(gradients(), gradients(), strict=True))
