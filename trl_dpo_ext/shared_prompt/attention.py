"""The attention functions that models find by name, with a layout of shared prompts and without."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trl_dpo_ext.shared_prompt.cascade import cascade
from trl_dpo_ext.shared_prompt.layout import Layout
from trl_dpo_ext.shared_prompt.masks import window_of
from trl_dpo_ext.shared_prompt.segmented import segmented
from trl_dpo_ext.shared_prompt.segments import Segments
from trl_dpo_ext.shared_prompt.varlen import gather_keys, half, varlen


__all__ = ["SDPA", "share_flash_attention"]

# Names under which models find attention by `sdpa`, by segments, FlashAttention or a mask. transformers would take a
# name with "flash" in it for a package
SDPA = {"segments": "sdpa_segments", "varlen": "sdpa_varlen", "dense": "sdpa_dense"}

# cuDNN, the first choice on some GPUs, makes a plan for every new shape, and a layout has a new shape at every step
_NO_PLANS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _by_segments(query: Tensor, key: Tensor, value: Tensor, mark: Tensor, plan: Layout, **options: Any) -> Tensor:
    return segmented(query, key, value, plan, window=window_of(mark), **options)


def _by_varlen(
    query: Tensor, key: Tensor, value: Tensor, mark: Tensor, plan: Segments, scale: float | None, dropout: float
) -> Tensor:
    assert not dropout, "see `why_not`"
    rows, _, width, _ = query.shape
    query, key, value = half(*(states.transpose(1, 2).flatten(0, 1) for states in (query, key, value)))
    window = window_of(mark)
    if plan.cascade is not None and window is None and not torch.compiler.is_compiling():
        output = cascade(query, key, value, plan.cascade, scale=scale)
    else:
        output = varlen(query, key, value, plan, window=window, scale=scale)
    return output.unflatten(0, (rows, width))


def _by_mask(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, plan: Layout, scale: float | None, dropout: float
) -> Tensor:
    key, value = (repeat_kv(states, query.size(1) // key.size(1)) for states in (key, value))
    with sdpa_kernel(_NO_PLANS) if query.is_cuda else nullcontext():
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    return output.transpose(1, 2)


def _with_plan(attend: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    # transformers' own `sdpa` without a plan, which is a layout or its segments. With one, every layer is handed the
    # mark of its window, or its mask
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        plan: Layout | Segments | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if plan is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
        if kwargs.get("softcap") is not None:
            raise ValueError("`sdpa` attention has no `softcap`. Use `attn_implementation='eager'`.")
        return attend(query, key, value, attention_mask, plan, scale=scaling, dropout=dropout), None

    return attention


def share_flash_attention(name: str) -> None:
    """
    Has the FlashAttention that models know by a name, the user's own, take the segments of a layout, too. Once; it
    stays what it was without them.

    Args:
        name (`str`):
            A model's `attn_implementation`, such as `"flash_attention_2"` or a kernel of the hub.
    """
    own: Callable[..., tuple[Tensor, None]] = AttentionInterface()[name]
    if hasattr(own, "takes_plans"):
        return

    @wraps(own)
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *args: Any,
        plan: Segments | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if plan is None or attention_mask is None:
            return own(module, query, key, value, attention_mask, *args, **kwargs)
        rows, _, width, _ = query.shape
        query = query.transpose(1, 2).flatten(0, 1)[None].transpose(1, 2)
        key, value = (
            gather_keys(states.transpose(1, 2).flatten(0, 1), plan.keys)[None].transpose(1, 2)
            for states in (key, value)
        )
        # From positions it would find out, waiting for the device, what the segments say
        kwargs.pop("position_ids", None)
        output, _ = own(
            module,
            query,
            key,
            value,
            None,
            *args,
            **kwargs | {"sliding_window": window_of(attention_mask)},
            cu_seq_lens_q=plan.cu_q,
            cu_seq_lens_k=plan.cu_k,
            max_length_q=plan.max_q,
            max_length_k=plan.max_k,
        )
        return output[0].unflatten(0, (rows, width)), None

    attend.takes_plans = True  # type: ignore[attr-defined]
    AttentionInterface.register(name, attend)


_ATTEND: dict[str, Callable[..., Tensor]] = {"segments": _by_segments, "varlen": _by_varlen, "dense": _by_mask}

for _path, _name in SDPA.items():
    AttentionInterface.register(_name, _with_plan(_ATTEND[_path]))
    AttentionMaskInterface.register(_name, sdpa_mask)
