"""A stand-in for the package flash-attn, by the kernel in torch: a machine without a network cannot install it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers.modeling_flash_attention_utils as flash_utils
from torch import Tensor
from transformers import PreTrainedModel

from trl_dpo_ext.shared_prompt.segments import Segments
from trl_dpo_ext.shared_prompt.varlen import varlen


__all__ = ["flash_package", "name_flash_attention"]


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
    deterministic: bool = False,
) -> Tensor:
    assert causal and not dropout_p, "this stand-in is causal and has no dropout"
    segments = Segments(cu_seqlens_q.int(), cu_seqlens_k.int(), int(max_seqlen_q), int(max_seqlen_k), None)
    return varlen(q, k, v, segments, None if window_size[0] < 0 else window_size[0] + 1, softmax_scale)


def _unused(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("The check runs rows with a mask or with segments only.")


@contextmanager
def flash_package() -> Iterator[None]:
    """Has transformers' `flash_attention_2` find torch's kernel."""
    given = flash_utils._lazy_imports
    functions: Any = (_unused, _flash_attn_varlen_func, None, flash_utils._pad_input, flash_utils._unpad_input)
    flash_utils._lazy_imports = lambda *args, **kwargs: functions
    flash_utils._loaded_implementation = None
    try:
        yield
    finally:
        flash_utils._lazy_imports = given
        flash_utils._loaded_implementation = None


def name_flash_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Gives a model `attn_implementation="flash_attention_2"`, which transformers refuses without the package."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = "flash_attention_2"
    return model
