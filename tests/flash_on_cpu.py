"""FlashAttention-2's operators of torch on a CPU, so that `varlen_attn`, its autograd and what calls it run there."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import Library
from transformers import PreTrainedModel, modeling_flash_attention_utils

from trl_dpo_ext.shared_prompt import paths


# Calls of each operator, so that a test can tell that the kernel was really called
calls: Counter[str] = Counter()


def sees(queries: int, keys: int, causal: bool, left: int | None, right: int | None, shift: int = 0) -> Tensor:
    """The mask of a segment: the last query is aligned with the last key; a negative or missing bound is none."""
    distance = torch.arange(queries)[:, None] + (keys - queries) + shift - torch.arange(keys)[None]
    right = 0 if causal else right
    mask = torch.ones(queries, keys, dtype=torch.bool)
    if right is not None and right >= 0:
        mask &= distance >= -right
    if left is not None and left >= 0:
        mask &= distance <= left
    return mask


def _segments(cu_q: Tensor, cu_k: Tensor) -> Iterator[tuple[slice, slice]]:
    q, k = cu_q.tolist(), cu_k.tolist()
    return zip(map(slice, q, q[1:]), map(slice, k, k[1:]), strict=True)


def _check(query: Tensor, key: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> None:
    # What the kernel of a GPU demands
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert len(cu_q) == len(cu_k)
    assert query.dim() == key.dim() == 3
    assert query.stride(-1) == key.stride(-1) == 1
    assert int(cu_q[-1]) == query.size(0)
    assert int(cu_k[-1]) == key.size(0)
    assert query.size(1) % key.size(1) == 0
    assert query.size(2) % 8 == 0
    assert query.size(2) <= 256
    # Host integers, and no empty segment, which hangs in FlashAttention-3
    assert max_q == int(cu_q.diff().max())
    assert max_k == int(cu_k.diff().max())
    assert int(cu_q.diff().min()) > 0


class _Kernels:
    def __init__(self, shift: int = 0, window_shift: int = 0):
        self.shift, self.window_shift = shift, window_shift

    def _probabilities(self, q: Tensor, k: Tensor, scale: float, causal: bool, window: tuple[Any, Any]) -> Tensor:
        left = None if window[0] is None or window[0] < 0 else window[0] + self.window_shift
        shift = -(k.size(1) - q.size(1)) if self.shift else 0
        mask = sees(q.size(1), k.size(1), causal, left, window[1], shift)
        return (q @ k.transpose(1, 2) * scale).masked_fill(~mask, -torch.inf)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        dropout_p: float,
        is_causal: bool,
        return_debug_mask: bool,
        *,
        scale: float | None = None,
        window_size_left: int | None = None,
        window_size_right: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        calls["forward"] += 1
        _check(query, key, cu_q, cu_k, max_q, max_k)
        scale = query.size(-1) ** -0.5 if scale is None else scale
        window = (window_size_left, window_size_right)
        dtype = torch.promote_types(query.dtype, torch.float32)
        # What is not written is not a number
        out = torch.full_like(query, torch.nan)
        lse = torch.full((query.size(1), query.size(0)), torch.nan, dtype=dtype)
        for rows, columns in _segments(cu_q, cu_k):
            q, k, v = _heads(query[rows], key[columns], value[columns])
            scores = self._probabilities(q, k, scale, is_causal, window)
            lse[:, rows] = scores.logsumexp(-1)
            out[rows] = (scores.softmax(-1) @ v).transpose(0, 1).to(query.dtype)
        return out, lse, torch.zeros(2, dtype=torch.uint64), torch.zeros(()), query.new_empty(0)

    def backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        dropout_p: float,
        is_causal: bool,
        rng_state: Tensor,
        unused: Tensor,
        *,
        scale: float | None = None,
        window_size_left: int | None = None,
        window_size_right: int | None = None,
    ) -> tuple[Tensor, ...]:
        calls["backward"] += 1
        scale = query.size(-1) ** -0.5 if scale is None else scale
        window = (window_size_left, window_size_right)
        grads = [torch.full_like(states, torch.nan) for states in (query, key, value)]
        size = (key.size(1), query.size(1) // key.size(1))

        def of_keys(values: Tensor) -> Tensor:
            return values.unflatten(0, size).sum(1).transpose(0, 1).to(key.dtype)

        for rows, columns in _segments(cu_q, cu_k):
            q, k, v = _heads(query[rows], key[columns], value[columns])
            do, o = (states[rows].transpose(0, 1).to(q.dtype) for states in (grad_out, out))
            p = (self._probabilities(q, k, scale, is_causal, window) - lse[:, rows, None]).exp()
            ds = p * (do @ v.transpose(1, 2) - (do * o).sum(-1, keepdim=True)) * scale
            grads[0][rows] = (ds @ k).transpose(0, 1).to(query.dtype)
            grads[1][columns] = of_keys(ds.transpose(1, 2) @ q)
            grads[2][columns] = of_keys(p.transpose(1, 2) @ do)
        return tuple(grads)


def _heads(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    # `(heads, tokens, D)`, keys repeated for the heads that share them; at least float32
    dtype = torch.promote_types(query.dtype, torch.float32)
    repeats = query.size(1) // key.size(1)
    return [
        states.transpose(0, 1).repeat_interleave(times, 0).to(dtype)
        for states, times in ((query, 1), (key, repeats), (value, repeats))
    ]


@contextmanager
def flash_on_cpu(upper_left: bool = False, window_shift: int = 0) -> Iterator[Counter[str]]:
    """
    Has torch compute FlashAttention on the CPU, in any dtype, and models think that it is there.

    Args:
        upper_left (`bool`): A wrong kernel, which aligns the first query with the first key.
        window_shift (`int`): A wrong kernel, whose windows are larger by so much.

    Yields:
        `Counter[str]`: Calls of the operators, from 0 on.
    """
    kernels = _Kernels(int(upper_left), window_shift)
    calls.clear()
    library = Library("aten", "IMPL", "CPU")
    library.impl("_flash_attention_forward", kernels.forward, "CPU")
    library.impl("_flash_attention_backward", kernels.backward, "CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "HALF", paths.HALF | {torch.float32, torch.float64})
        try:
            yield calls
        finally:
            library._destroy()


def _flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    # By the signature of the package `flash_attn`
    calls["flash_attn"] += 1
    _check(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    assert causal
    outputs = []
    for rows, columns in _segments(cu_seqlens_q, cu_seqlens_k):
        query, key, value = _heads(q[rows], k[columns], v[columns])
        scores = query @ key.transpose(1, 2) * (softmax_scale or q.size(-1) ** -0.5)
        if softcap:
            scores = softcap * (scores / softcap).tanh()
        mask = sees(query.size(1), key.size(1), causal, *window_size)
        outputs.append((scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(0, 1).to(q.dtype))
    return torch.cat(outputs)


def _flash_attn_func(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    size = q.shape[:2]
    starts = torch.arange(0, size[0] * size[1] + 1, size[1], dtype=torch.int32)
    flat = (states.flatten(0, 1) for states in (q, k, v))
    return _flash_attn_varlen_func(*flat, starts, starts, size[1], size[1], **options).unflatten(0, size)


@contextmanager
def flash_attn_on_cpu() -> Iterator[Counter[str]]:
    """Has `flash_attention_2` of transformers run on the CPU, in any dtype, by an imitation of `flash_attn`."""
    calls.clear()
    of_padding = (modeling_flash_attention_utils._pad_input, modeling_flash_attention_utils._unpad_input)
    functions = (_flash_attn_func, _flash_attn_varlen_func, None, *of_padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "HALF", paths.HALF | {torch.float32, torch.float64})
        patch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *_, **__: functions)
        patch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
        yield calls


def use_flash_attention_2(model: PreTrainedModel) -> None:
    """As if the model had been loaded with it, which transformers refuses without the package."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = "flash_attention_2"
