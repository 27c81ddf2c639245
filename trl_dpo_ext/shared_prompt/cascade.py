"""
torch's FlashAttention on shared prompts by two calls, merged by their log-sum-exp, so that no key is copied.

The first call is causal in every prompt and every completion by itself. In the second all completions of a group see
their prompt.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trl_dpo_ext.shared_prompt.layout import Layout, starts_of, to_device


__all__ = ["Cascade", "cascade", "cascade_of"]


@dataclass(frozen=True)
class Cascade:
    """
    The segments of both calls among the T tokens of a layout's flattened rows.

    Args:
        cu_own (`torch.Tensor`, int32):
            Where each prompt and each completion starts, and the end of the last.
        max_own (`int`):
            Tokens of the longest of them.
        queries, keys (`torch.Tensor`):
            Places of the tokens of completions, and of those of their prompts.
        cu_queries, cu_keys (`torch.Tensor`, int32):
            Where each group starts among them, and the end of the last.
        max_queries, max_keys (`int`):
            Tokens of the largest group.
    """

    cu_own: Tensor
    max_own: int
    queries: Tensor
    cu_queries: Tensor
    max_queries: int
    keys: Tensor
    cu_keys: Tensor
    max_keys: int


def cascade(query: Tensor, key: Tensor, value: Tensor, calls: Cascade, scale: float | None = None) -> Tensor:
    """
    Causal attention of a layout's tokens without windows, as [`~trl_dpo_ext.shared_prompt.varlen.varlen`] computes it.

    The two outputs are averaged with weights exp(lse_i - log(exp(lse_1) + exp(lse_2))), which is the softmax over both
    sets of keys. The kernel's backward takes the merged output and log-sum-exp of each call.

    Args:
        query (`torch.Tensor` of shape `(T, heads, D)`):
            Queries, in half precision.
        key (`torch.Tensor` of shape `(T, key heads, D)`):
            Keys.
        value (`torch.Tensor` of shape `(T, key heads, D)`):
            Values.
        calls ([`Cascade`]):
            Segments of the two calls.
        scale (`float`, *optional*):
            Factor of the scores. Defaults to one over the square root of D.

    Returns:
        `torch.Tensor` of shape `(T, heads, D)`
    """
    output: Tensor = _Cascade.apply(query, key, value, calls, scale)
    return output


def cascade_of(layout: Layout) -> Cascade:
    """Returns the segments of both calls. Made on the host."""
    own, queries, num_queries, keys, num_keys, at = [], [], [], [], [], 0
    for prompt, completions in layout.segments:
        after = sum(completions)
        own += [length for length in (prompt, *completions) if length]
        if after and prompt:
            keys.append(torch.arange(at, at + prompt))
            queries.append(torch.arange(at + prompt, at + prompt + after))
            num_keys.append(prompt)
            num_queries.append(after)
        at += prompt + after
    device = layout.tokens.device
    return Cascade(
        cu_own=starts_of(torch.tensor(own), device),
        max_own=max(own),
        queries=to_device(torch.cat(queries), device),
        cu_queries=starts_of(torch.tensor(num_queries), device),
        max_queries=max(num_queries),
        keys=to_device(torch.cat(keys), device),
        cu_keys=starts_of(torch.tensor(num_keys), device),
        max_keys=max(num_keys),
    )


class _Cascade(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, calls: Cascade, scale: float | None) -> Tensor:
        flash = torch.ops.aten._flash_attention_forward
        out, lse, *state = flash(
            query, key, value, calls.cu_own, calls.cu_own, calls.max_own, calls.max_own, 0.0, True, False, scale=scale
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
            scale=scale,
        )
        both = torch.logaddexp(lse[:, rows], lse_of_prompt)  # (heads, number of rows)
        weights = ((part - both).exp().T[..., None] for part in (lse[:, rows], lse_of_prompt))
        merged = sum(part * weight for part, weight in zip((out[rows], of_prompt), weights, strict=True))
        out = out.index_copy(0, rows, merged.to(out.dtype))
        lse = lse.index_copy(1, rows, both)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.calls, ctx.scale, ctx.random = calls, scale, (state[:2], state_of_prompt[:2])
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
            scale=ctx.scale,
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
            scale=ctx.scale,
        )
        # Places are unique, so that nothing is added twice
        grads = (
            whole.index_add(0, places, part)
            for whole, places, part in zip((dq, dk, dv), (rows, keys, keys), more, strict=True)
        )
        return *grads, None, None
