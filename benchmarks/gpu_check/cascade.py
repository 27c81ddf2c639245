"""
Attention of shared prompts by two calls of FlashAttention, merged by their log-sum-exp. No key is copied.

The first call is causal in every prompt and every completion by itself. In the second all completions of a group see
its prompt. The check compares it with the package's single call on gathered keys.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trl_dpo_ext.shared_prompt.layout import Layout


__all__ = ["cascade"]


@dataclass(frozen=True)
class _Calls:
    # Of the first call, then of the second: its queries and keys as places among the tokens
    cu_own: Tensor
    max_own: int
    queries: Tensor
    cu_queries: Tensor
    max_queries: int
    keys: Tensor
    cu_keys: Tensor
    max_keys: int


def cascade(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """Attention `(T, heads, D)` of a layout of one row; gradients by the kernel's own backward."""
    if "cascade" not in layout.made:
        layout.made["cascade"] = _calls(layout)
    output: Tensor = _Cascade.apply(query, key, value, layout.made["cascade"])
    return output


def _calls(layout: Layout) -> _Calls:
    own, queries, num_queries, keys, num_keys, at = [], [], [], [], [], 0
    for prompt, completions in layout.segments:
        after = sum(completions)
        own += [length for length in (prompt, *completions) if length]
        if after:
            keys.append(torch.arange(at, at + prompt))
            queries.append(torch.arange(at + prompt, at + prompt + after))
            num_keys.append(prompt)
            num_queries.append(after)
        at += prompt + after
    device = layout.tokens.device

    def starts(lengths: list[int]) -> Tensor:
        return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(device)

    return _Calls(
        cu_own=starts(own),
        max_own=max(own),
        queries=torch.cat(queries).to(device),
        cu_queries=starts(num_queries),
        max_queries=max(num_queries),
        keys=torch.cat(keys).to(device),
        cu_keys=starts(num_keys),
        max_keys=max(num_keys),
    )


class _Cascade(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, calls: _Calls) -> Tensor:
        flash = torch.ops.aten._flash_attention_forward
        out, lse, *state = flash(
            query, key, value, calls.cu_own, calls.cu_own, calls.max_own, calls.max_own, 0.0, True, False
        )
        rows, keys = calls.queries, calls.keys
        of_prompt, lse_of_prompt, *state_of_prompt = flash(
            query[rows],
            key[keys],
            value[keys],
            calls.cu_queries,
            calls.cu_keys,
            calls.max_queries,
            calls.max_keys,
            0.0,
            False,
            False,
        )
        both = torch.logaddexp(lse[:, rows], lse_of_prompt)  # (heads, number of rows)
        weights = ((part - both).exp().T[..., None] for part in (lse[:, rows], lse_of_prompt))
        merged = sum(part * weight for part, weight in zip((out[rows], of_prompt), weights, strict=True))
        out = out.index_copy(0, rows, merged.to(out.dtype))
        lse = lse.index_copy(1, rows, both)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.calls, ctx.random = calls, (state[:2], state_of_prompt[:2])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        calls, (random, random_of_prompt) = ctx.calls, ctx.random
        backward = torch.ops.aten._flash_attention_backward
        gradient = gradient.contiguous()
        # With the merged output and log-sum-exp each call gives its own share of the gradients
        dq, dk, dv = backward(
            gradient,
            query,
            key,
            value,
            out,
            lse,
            calls.cu_own,
            calls.cu_own,
            calls.max_own,
            calls.max_own,
            0.0,
            True,
            *random,
        )
        rows, keys = calls.queries, calls.keys
        more = backward(
            gradient[rows],
            query[rows],
            key[keys],
            value[keys],
            out[rows],
            lse[:, rows].contiguous(),
            calls.cu_queries,
            calls.cu_keys,
            calls.max_queries,
            calls.max_keys,
            0.0,
            False,
            *random_of_prompt,
        )
        # Places are unique, so that nothing is added twice
        grads = (
            whole.index_add(0, places, part)
            for whole, places, part in zip((dq, dk, dv), (rows, keys, keys), more, strict=True)
        )
        return *grads, None
