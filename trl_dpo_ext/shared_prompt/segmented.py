"""Attention in a layout, segment by segment, by calls of `sdpa`: the way of a CPU."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from trl_dpo_ext.shared_prompt.layout import Layout


__all__ = ["segmented"]


def segmented(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    window: int | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """
    Attention of a layout's tokens: a prompt sees itself, a completion its prompt and itself.

    No score between two completions or two groups is computed, so that long rows cost nothing more.

    Args:
        query (`torch.Tensor` of shape `(R, heads, S, D)`):
            Queries.
        key (`torch.Tensor` of shape `(R, key heads, S, D)`):
            Keys.
        value (`torch.Tensor` of shape `(R, key heads, S, D)`):
            Values.
        layout ([`~trl_dpo_ext.shared_prompt.layout.Layout`]):
            Rows.
        window (`int`, *optional*):
            Tokens that a token sees, its own included.
        scale (`float`, *optional*):
            Factor of the scores. Defaults to one over the square root of D.
        dropout (`float`, *optional*, defaults to `0.0`):
            Share of the attention weights that is dropped.

    Returns:
        `torch.Tensor` of shape `(R, S, heads, D)`
    """
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
            scale=scale,
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    output = torch.cat(outputs).index_select(0, calls.back)  # (R * S, heads, D)
    return output.view(rows, width, heads, -1)


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
    if key not in layout.made:
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
        layout.made[key] = _Calls(
            each=[_Call(before, length, len(places)) for (before, length), places in starts.items()],
            own=order,
            prompts=torch.cat(prompts).to(device),
            back=order.argsort(),
        )
    return layout.made[key]


def _own_mask(layout: Layout, before: int, length: int, window: int | None) -> Tensor:
    # `length` tokens that come after `before` others: (length, before + length)
    key = ("own", before, length, window)
    if key not in layout.made:
        device = layout.groups.device
        positions = torch.arange(before + length, device=device)
        distance = positions[before:, None] - positions[None, :]
        layout.made[key] = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    return layout.made[key]
