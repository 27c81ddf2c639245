"""Attention in a layout: a token sees its prompt and its own completion's past, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trl_dpo_ext.shared_prompt.layout import Layout


__all__ = ["SEGMENTED", "block_mask", "dense_mask", "segmented_attention", "window_mark"]

# Name under which models find `segmented_attention`
SEGMENTED = "sdpa_segmented"


def _sees(layout: Layout, window: int | None) -> Callable[..., Tensor]:
    # As a `mask_mod` of flex attention; the arguments may also be broadcast index tensors
    groups, branches, positions = layout.groups, layout.branches, layout.positions

    def sees(row: Any, head: Any, query: Any, key: Any) -> Tensor:
        same_group = groups[row, query] == groups[row, key]
        own = (branches[row, key] == 0) | (branches[row, key] == branches[row, query])
        distance = positions[row, query] - positions[row, key]
        near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        return same_group & own & near

    return sees


def dense_mask(layout: Layout, window: int | None = None, additive: torch.dtype | None = None) -> Tensor:
    """
    Returns the mask `(R, 1, S, S)`: what each token sees of its row.

    Args:
        layout ([`~trl_dpo_ext.shared_prompt.layout.Layout`]):
            Rows.
        window (`int`, *optional*):
            Sliding window, in positions (not in places of the row).
        additive (`torch.dtype`, *optional*):
            Dtype of a mask that is added to the scores, which eager attention takes; by default a boolean mask.
    """
    key = ("dense", window, additive)
    if key not in layout.masks:
        rows, width = layout.groups.shape
        row = torch.arange(rows, device=layout.groups.device)[:, None, None]
        places = torch.arange(width, device=layout.groups.device)
        mask = _sees(layout, window)(row, None, places[:, None], places[None, :])[:, None]
        if additive is not None:
            mask = torch.zeros_like(mask, dtype=additive).masked_fill(~mask, torch.finfo(additive).min)
        layout.masks[key] = mask
    return layout.masks[key]


def block_mask(layout: Layout, window: int | None = None) -> Any:
    """Returns the `BlockMask` of flex attention: what no token of a block sees is never computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    key = ("block", window)
    if key not in layout.masks:
        rows, width = layout.groups.shape
        device = layout.groups.device
        # Compiled, it never holds all pairs of tokens
        layout.masks[key] = create_block_mask(
            _sees(layout, window), rows, None, width, width, device=device.type, _compile=device.type == "cuda"
        )
    return layout.masks[key]


def window_mark(layout: Layout, window: int | None) -> Tensor:
    """
    Stands where a layer expects its mask, and says which window it has (0: none).

    Models make no mask of their own when they are given one of four dimensions, and hand each layer its own. Not all
    tell their layers the window otherwise.
    """
    return torch.full((1, 1, 1, 1), window or 0, device=layout.tokens.device)


def segmented_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """
    `sdpa` attention, segment by segment: a prompt sees itself, a completion its prompt and itself.

    No score between two completions or two groups is computed, so that long rows cost nothing more. Without `layout`
    it is transformers' own `sdpa` attention.

    Args:
        module ([`~torch.nn.Module`]):
            Attention layer.
        query (`torch.Tensor` of shape `(R, heads, S, D)`):
            Queries.
        key (`torch.Tensor` of shape `(R, key heads, S, D)`):
            Keys.
        value (`torch.Tensor` of shape `(R, key heads, S, D)`):
            Values.
        attention_mask (`torch.Tensor`, *optional*):
            Where there is a layout: the [`window_mark`] of the layer.
        dropout (`float`, *optional*, defaults to `0.0`):
            Share of the attention weights that is dropped.
        scaling (`float`, *optional*):
            Factor of the scores. Defaults to one over the square root of D.
        layout ([`~trl_dpo_ext.shared_prompt.layout.Layout`], *optional*):
            Rows.
        kwargs:
            What `transformers` passes on to its own `sdpa` attention.

    Returns:
        `tuple[torch.Tensor, None]`: Attention output of shape `(R, S, heads, D)`.
    """
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if kwargs.get("softcap") is not None:
        raise ValueError("`sdpa` attention has no `softcap`. Use `attn_implementation='eager'` or 'flex_attention'.")

    assert attention_mask is not None
    window = int(attention_mask) or None
    rows, heads, width, _ = query.shape
    calls = _calls(layout)

    def by_call(states: Tensor, tokens: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        # One gather and one split for all calls, (n * length, heads, D) each
        return states.transpose(1, 2).flatten(0, 1).index_select(0, tokens).split(sizes)

    key, value = (repeat_kv(states, heads // key.size(1)) for states in (key, value))
    own_sizes = [call.count * call.length for call in calls.each]
    own = zip(*(by_call(states, calls.own, own_sizes) for states in (query, key, value)), strict=True)
    prompt_sizes = [call.count * call.before for call in calls.each]
    prompts = zip(*(by_call(states, calls.prompts, prompt_sizes) for states in (key, value)), strict=True)
    outputs = []
    for call, (queries, *seen), before in zip(calls.each, own, prompts, strict=True):
        keys, values = (
            torch.cat([past.unflatten(0, (call.count, -1)), states.unflatten(0, (call.count, -1))], dim=1)
            if call.before
            else states.unflatten(0, (call.count, -1))
            for past, states in zip(before, seen, strict=True)
        )
        is_causal = not call.before and (window is None or call.length <= window)
        attended = F.scaled_dot_product_attention(
            queries.unflatten(0, (call.count, -1)).transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=None if is_causal else _own_mask(layout, call.before, call.length, window),
            dropout_p=dropout,
            is_causal=is_causal,
            scale=scaling,
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    output = torch.cat(outputs).index_select(0, calls.back)  # (R * S, heads, D)
    return output.view(rows, width, heads, -1), None


@dataclass(frozen=True)
class _Call:
    # `count` segments of `length` tokens, each after `before` tokens of its prompt
    before: int
    length: int
    count: int


@dataclass(frozen=True)
class _Calls:
    # All calls; the tokens of their segments and of these segments' prompts, in the order of the calls, as places in
    # the flattened rows; and where each token's output is
    each: list[_Call]
    own: Tensor
    prompts: Tensor
    back: Tensor


def _calls(layout: Layout) -> _Calls:
    key = ("calls",)
    if key not in layout.masks:
        # Segments of the same two lengths share a call: short rows come by the hundred
        starts: dict[tuple[int, int], list[tuple[int, int]]] = {}
        at = 0
        for prompt, branches in layout.segments:
            first = at
            for before, length in [(0, prompt), *((prompt, length) for length in branches)]:
                if length:
                    starts.setdefault((before, length), []).append((at, first))
                at += length
        own, prompts = [], []
        for (before, length), places in starts.items():
            segment, prompt_start = torch.tensor(places).T[..., None]  # (n, 1)
            own.append((segment + torch.arange(length)).flatten())
            prompts.append((prompt_start + torch.arange(before)).flatten())
        device = layout.groups.device
        order = torch.cat(own).to(device)
        layout.masks[key] = _Calls(
            each=[_Call(before, length, len(places)) for (before, length), places in starts.items()],
            own=order,
            prompts=torch.cat(prompts).to(device),
            back=order.argsort(),
        )
    return layout.masks[key]


def _own_mask(layout: Layout, before: int, length: int, window: int | None) -> Tensor:
    # `length` tokens that come after `before` others: (length, before + length)
    key = ("own", before, length, window)
    if key not in layout.masks:
        device = layout.groups.device
        positions = torch.arange(before + length, device=device)
        distance = positions[before:, None] - positions[None, :]
        layout.masks[key] = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    return layout.masks[key]


AttentionInterface.register(SEGMENTED, segmented_attention)
AttentionMaskInterface.register(SEGMENTED, sdpa_mask)
