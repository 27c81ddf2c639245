"""Layouts of groups by their lengths, and random queries, keys and values for them."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_check.machine import HALF
from trl_dpo_ext.shared_prompt.groups import PromptGroups
from trl_dpo_ext.shared_prompt.layout import Layout, lay_out
from trl_dpo_ext.shared_prompt.masks import dense_mask


__all__ = ["Lengths", "attend_by_mask", "groups_of", "layout_of", "states_of"]

# Tokens of each group's prompt, and of each of its completions that attend
Lengths = Sequence[tuple[int, Sequence[int]]]


def groups_of(lengths: Lengths) -> PromptGroups:
    """Groups whose completions have one token more, the last, which predicts nothing and is not laid out."""
    members: list[list[int]] = []
    starts: list[int] = []
    totals: list[int] = []
    for prompt, completions in lengths:
        members.append(list(range(len(starts), len(starts) + len(completions))))
        starts += [prompt] * len(completions)
        totals += [prompt + length + 1 for length in completions]
    most = max(len(completions) for _, completions in lengths)
    return PromptGroups(
        members=members,
        shared=[prompt for prompt, _ in lengths],
        starts=starts,
        lengths=totals,
        width=max(totals),
        completions=most,
        places=None,
        most=most,
        padded_right=True,
    )


def layout_of(lengths: Lengths, device: torch.device, shares: bool = True) -> Layout:
    """All groups in one row; with `shares=False` each prompt once for every completion."""
    groups = groups_of(lengths)
    return lay_out(groups if shares else groups.apart(), None, device)


def states_of(layout: Layout, heads: int, key_heads: int, size: int, seed: int = 0) -> list[Tensor]:
    """Queries, keys and values `(T, heads, D)` in half precision, with gradient."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(layout.tokens.numel(), n, size, generator=generator)
        .to(layout.tokens.device, HALF)
        .requires_grad_()
        for n in (heads, key_heads, key_heads)
    ]


def attend_by_mask(layout: Layout, window: int | None = None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention of a layout of one row under its dense mask, `(T, heads, D)`."""
    mask = dense_mask(layout, window)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (states.transpose(0, 1)[None] for states in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)

    return attend
