"""Masks of a layout: a token sees its prompt and its own completion's past, and nothing else."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trl_dpo_ext.shared_prompt.layout import Layout


__all__ = ["block_mask", "dense_mask", "window_mark", "window_of"]


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
    if key not in layout.made:
        rows, width = layout.groups.shape
        row = torch.arange(rows, device=layout.groups.device)[:, None, None]
        places = torch.arange(width, device=layout.groups.device)
        mask = _sees(layout, window)(row, None, places[:, None], places[None, :])[:, None]
        if additive is not None:
            mask = torch.zeros_like(mask, dtype=additive).masked_fill(~mask, torch.finfo(additive).min)
        layout.made[key] = mask
    made: Tensor = layout.made[key]
    return made


def block_mask(layout: Layout, window: int | None = None) -> Any:
    """Returns the `BlockMask` of flex attention: what no token of a block sees is never computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    key = ("block", window)
    if key not in layout.made:
        rows, width = layout.groups.shape
        device = layout.groups.device
        # Compiled, it never holds all pairs of tokens
        layout.made[key] = create_block_mask(
            _sees(layout, window), rows, None, width, width, device=device.type, _compile=device.type == "cuda"
        )
    return layout.made[key]


def window_mark(layout: Layout, window: int | None) -> Tensor:
    """
    Stands where a layer expects its mask, and says which window it has, for [`window_of`].

    Models make no mask of their own when they are given one of four dimensions, and hand each layer its own. Not all
    tell their layers the window otherwise. The window is in the mark's shape: to read a value would wait for a GPU.
    """
    key = ("mark", window)
    if key not in layout.made:
        one = torch.zeros(1, dtype=torch.long, device=layout.tokens.device)
        layout.made[key] = one.expand(1, 1, (window or 0) + 1, 1)
    made: Tensor = layout.made[key]
    return made


def window_of(mark: Tensor) -> int | None:
    """Returns the window that a [`window_mark`] stands for."""
    return mark.size(2) - 1 or None
