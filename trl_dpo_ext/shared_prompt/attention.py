"""Attention in a layout: a token sees its prompt and its own completion's past, and nothing else."""

from collections.abc import Callable, Sequence
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
    groups = heads // key.size(1)
    lengths, calls = _calls(layout)
    # One split, whose gradient is one concatenation; slices would each add up a gradient of full size
    queries, keys, values = (
        states.transpose(0, 1).flatten(1, 2)[None].split(lengths, dim=2)
        for states in (query, repeat_kv(key, groups), repeat_kv(value, groups))
    )
    outputs: list[Tensor] = [query.new_empty(1, heads, 0, value.size(-1))] * len(lengths)
    for (before, length), (segments, prompts) in calls.items():
        seen_keys, seen_values = _batch(keys, segments), _batch(values, segments)
        if before:
            seen_keys = torch.cat([_batch(keys, prompts), seen_keys], dim=2)
            seen_values = torch.cat([_batch(values, prompts), seen_values], dim=2)
        is_causal = not before and (window is None or length <= window)
        mask = None if is_causal else _own_mask(layout, before, length, window)
        attended = F.scaled_dot_product_attention(
            _batch(queries, segments),
            seen_keys,
            seen_values,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=is_causal,
            scale=scaling,
        )
        for segment, piece in zip(segments, attended.split(1), strict=True):
            outputs[segment] = piece
    output = torch.cat([piece.transpose(1, 2) for piece in outputs], dim=1)  # (1, R * S, heads, D)
    return output.view(rows, width, heads, -1), None


def _calls(layout: Layout) -> tuple[list[int], dict[tuple[int, int], tuple[list[int], list[int]]]]:
    # Length of every segment; and for each pair of lengths, of what comes before and of the segment itself, the
    # segments that one call can take together, with the numbers of their prompts. Short rows come by the hundred
    key = ("calls",)
    if key not in layout.masks:
        lengths: list[int] = []
        calls: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for prompt, branches in layout.segments:
            number = len(lengths)
            for before, length in [(0, prompt), *((prompt, length) for length in branches)]:
                if length:
                    segments, prompts = calls.setdefault((before, length), ([], []))
                    segments.append(len(lengths))
                    prompts.append(number)
                lengths.append(length)
        layout.masks[key] = lengths, calls
    return layout.masks[key]


def _batch(pieces: Sequence[Tensor], numbers: list[int]) -> Tensor:
    return pieces[numbers[0]] if len(numbers) == 1 else torch.cat([pieces[number] for number in numbers])


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
