"""torch's FlashAttention on the segments of a layout."""

import inspect
from typing import Any

import torch
from torch import Tensor

from trl_dpo_ext.shared_prompt.segments import Segments


try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]


__all__ = ["gather_keys", "half", "has_kernel", "varlen"]

_PARAMETERS = frozenset(inspect.signature(varlen_attn).parameters) if varlen_attn is not None else frozenset()

# torch 2.12 asks for it where heads share keys; 2.11 takes such heads and has no such argument
_GROUPED_HEADS: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _PARAMETERS else {}


def has_kernel(device: torch.device) -> bool:
    """Whether this torch (2.11 or later) has variable-length FlashAttention with a window on a kind of device."""
    key = device.type.upper() if device.type == "cpu" else "CUDA"
    return {"scale", "window_size"} <= _PARAMETERS and torch._C._dispatch_has_kernel_for_dispatch_key(
        "aten::_flash_attention_forward", key
    )


class _Gather(torch.autograd.Function):
    # `index_select` whose backward adds up in float32. A prompt's keys are gathered once for each completion, and in
    # half precision the sum of their gradients would round at every step
    @staticmethod
    def forward(ctx: Any, states: Tensor, keys: Tensor) -> Tensor:
        ctx.save_for_backward(keys)
        ctx.size = states.shape
        return states.index_select(0, keys)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keys,) = ctx.saved_tensors
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        total = torch.zeros(ctx.size, dtype=dtype, device=gradient.device)
        return total.index_add_(0, keys, gradient.to(dtype)).to(gradient.dtype), None


def gather_keys(states: Tensor, keys: Tensor | None) -> Tensor:
    """
    Gathers keys or values `(T, heads, D)` by their places; the gradient is summed in float32.

    Args:
        states (`torch.Tensor` of shape `(T, heads, D)`):
            Keys or values of the tokens.
        keys (`torch.Tensor` of shape `(M,)`, *optional*):
            Places. `None`: the tokens as they lie.

    Returns:
        `torch.Tensor` of shape `(M, heads, D)`
    """
    if keys is None:
        return states
    gathered: Tensor = _Gather.apply(states, keys)
    return gathered


def half(*states: Tensor) -> tuple[Tensor, ...]:
    """
    Casts queries, keys and values to the dtype that FlashAttention computes in: autocast's, else that of the values.

    Autocast does not see custom operators, and rotary embeddings leave queries and keys in float32.
    """
    device = states[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states[-1].dtype
    return tuple(values.to(dtype) for values in states)


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """
    Causal attention of a layout's tokens, by FlashAttention.

    Args:
        query (`torch.Tensor` of shape `(T, heads, D)`):
            Queries, in half precision.
        key (`torch.Tensor` of shape `(T, key heads, D)`):
            Keys.
        value (`torch.Tensor` of shape `(T, key heads, D)`):
            Values.
        segments ([`~trl_dpo_ext.shared_prompt.segments.Segments`]):
            Segments.
        window (`int`, *optional*):
            Tokens that a token sees, its own included.
        scale (`float`, *optional*):
            Factor of the scores. Defaults to one over the square root of D.

    Returns:
        `torch.Tensor` of shape `(T, heads, D)`
    """
    key, value = (gather_keys(states, segments.keys) for states in (key, value))
    output: Tensor = varlen_attn(  # type: ignore[assignment]
        query,
        key,
        value,
        segments.cu_q,
        segments.cu_k,
        segments.max_q,
        segments.max_k,
        scale=scale,
        window_size=(-1, 0) if window is None else (window - 1, 0),
        **_GROUPED_HEADS,
    )
    return output
