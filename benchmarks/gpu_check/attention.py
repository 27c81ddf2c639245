"""How long attention takes, forward and backward, on the shapes of data, for each way to compute it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_check.layouts import Lengths, layout_of, states_of
from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.sections import Found
from trl_dpo_ext.shared_prompt.cascade import cascade, cascade_of
from trl_dpo_ext.shared_prompt.layout import Layout
from trl_dpo_ext.shared_prompt.masks import block_mask, dense_mask
from trl_dpo_ext.shared_prompt.segments import Segments, segments_of
from trl_dpo_ext.shared_prompt.varlen import varlen


__all__ = ["SHAPES", "measure_attention"]

# Groups, tokens of a prompt and of each completion
SHAPES = {
    "hh": (32, 160, [80] * 2),
    "ultrafeedback": (8, 300, [300] * 4),
    "long-eight": (4, 1024, [128] * 8),
    "very-long": (2, 4096, [512] * 2),
}

# Heads and key heads of Llama 3.2 1B, and their size
_HEADS = (32, 8, 64)


def measure_attention(machine: Machine, found: Found) -> None:
    """Puts the milliseconds of one layer's attention into `found`, of each shape and way."""
    lengths: dict[str, Lengths] = {}
    for name, (groups, prompt, completions) in SHAPES.items():
        if machine.dry:
            groups, prompt, completions = 2, prompt // 64, [max(length // 64, 1) for length in completions]
        lengths[name] = [(prompt, completions)] * groups
        found[name] = {}
        _measure(machine, lengths[name], found[name])
    if not machine.dry:  # it compiles, and the others do not wait for it
        for name in SHAPES:
            _measure_flex(machine, layout_of(lengths[name], machine.device), found[name])


def _measure(machine: Machine, lengths: Lengths, found: Found) -> None:
    shared, apart = (layout_of(lengths, machine.device, shares) for shares in (True, False))
    found |= {"tokens": shared.tokens.numel(), "tokens_of_rows": apart.tokens.numel()}
    segments, calls = segments_of(shared), cascade_of(shared)

    def plain_gather(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert segments.keys is not None
        k, v = (states.index_select(0, segments.keys) for states in (k, v))
        return varlen(q, k, v, Segments(segments.cu_q, segments.cu_k, segments.max_q, segments.max_k, None))

    ways: dict[str, tuple[Layout, Callable[..., Tensor]]] = {
        "separate rows": (apart, lambda q, k, v: varlen(q, k, v, segments_of(apart))),
        "gathered keys": (shared, lambda q, k, v: varlen(q, k, v, segments)),
        "gathered keys, gradients summed in bf16": (shared, plain_gather),
        "cascade": (shared, lambda q, k, v: cascade(q, k, v, calls)),
        "dense mask": (shared, _by_row_masks(shared, len(lengths))),
    }
    for name, (layout, attend) in ways.items():
        found[name] = _milliseconds(machine, layout, attend)


def _milliseconds(machine: Machine, layout: Layout, attend: Callable[..., Tensor], repeats: int = 12) -> float:
    states = states_of(layout, *_HEADS)
    gradient = torch.randn_like(states[0])
    return machine.milliseconds(lambda: torch.autograd.grad(attend(*states), states, gradient), repeats)


def _by_row_masks(layout: Layout, groups: int) -> Callable[..., Tensor]:
    # As the package's dense path, which has a group of these in each row. All groups are equally long
    width = layout.tokens.numel() // groups
    mask = dense_mask(layout)[..., :width, :width].expand(groups, 1, width, width).contiguous()

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        repeats = query.size(1) // key.size(1)
        q, k, v = (
            states.unflatten(0, (groups, width)).transpose(1, 2)
            for states in (query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1))
        )
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(0, 1)

    return attend


def _measure_flex(machine: Machine, layout: Layout, found: Found) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    flex = torch.compile(flex_attention, dynamic=True)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (states.transpose(0, 1)[None] for states in (query, key, value))
        return flex(q, k, v, block_mask=block_mask(layout), enable_gqa=True)[0].transpose(0, 1)

    def make_mask() -> None:
        layout.made.clear()
        block_mask(layout)

    try:
        found["block mask"] = machine.milliseconds(make_mask)
        found["flex"] = _milliseconds(machine, layout, attend)
    except Exception as error:  # a compiler's, which says nothing of the other ways
        found["flex failed"] = repr(error)[:300]
