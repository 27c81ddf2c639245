"""Which attention runs a model on a layout: the best that is exact, or the one that is asked for."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from trl_dpo_ext.shared_prompt.support import hands_on_arguments, whole_rows_for_model
from trl_dpo_ext.shared_prompt.varlen import has_kernel


__all__ = ["COMPILED", "DESCRIPTIONS", "HALF", "PATHS", "Facts", "choose_path", "why_not"]

# Ways to tell a model what a token of a layout sees, the best first
DESCRIPTIONS = {
    "flash": "the model's FlashAttention",
    "segments": "attention by segments",
    "varlen": "FlashAttention of torch",
    "flex": "block mask",
    "dense": "dense mask",
}

# Values of `attention_path`
PATHS = ("auto", *DESCRIPTIONS, "separate")

# Paths that take the segments of a layout: a layer is then the same program for all, and can be compiled
COMPILED = frozenset({"flash", "varlen"})

# What FlashAttention computes in
HALF = frozenset({torch.float16, torch.bfloat16})

_LARGEST_HEAD, _MULTIPLE_OF_HEAD, _CAPABILITY = 256, 8, (8, 0)


@dataclass(frozen=True)
class Facts:
    """
    What decides which attention is exact for a model, where it runs.

    Args:
        attention (`str`):
            The model's `attn_implementation`.
        device (`str`):
            Type of the device.
        dtype (`torch.dtype`):
            Dtype that attention computes in.
        capability (`tuple[int, int]`, *optional*):
            Compute capability of a GPU.
        has_kernel (`bool`):
            Whether torch has variable-length FlashAttention there.
        hands_on (`bool`):
            Whether layers are handed the arguments of the model's forward.
        head_sizes (`tuple[int, ...]`):
            Sizes of the heads of queries and values.
        softcap (`float`, *optional*):
            Soft cap of the attention scores.
        dropout (`float`):
            Dropout of the attention weights.
        torch_version (`str`):
            Version of torch.
    """

    attention: str
    device: str
    dtype: torch.dtype
    capability: tuple[int, int] | None = None
    has_kernel: bool = False
    hands_on: bool = True
    head_sizes: tuple[int, ...] = (64,)
    softcap: float | None = None
    dropout: float = 0.0
    torch_version: str = torch.__version__

    @classmethod
    def of(cls, model: PreTrainedModel, device: torch.device, dtype: torch.dtype, shares: bool) -> "Facts":
        """Reads the facts of a model that runs on a device in a dtype; where it shares prompts, dropout is off."""
        config = model.config.get_text_config()
        hidden, heads = getattr(config, "hidden_size", 0), getattr(config, "num_attention_heads", 1)
        size = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None) or hidden // heads
        is_gpu = device.type == "cuda" and torch.cuda.is_available()
        return cls(
            # A trainer before this one may have named a function of this package
            attention="sdpa" if str(config._attn_implementation).startswith("sdpa_") else config._attn_implementation,
            device=device.type,
            dtype=dtype,
            capability=torch.cuda.get_device_capability(device) if is_gpu else None,
            has_kernel=has_kernel(device),
            hands_on=hands_on_arguments(model),
            head_sizes=(size, getattr(config, "v_head_dim", None) or size),
            softcap=getattr(config, "attn_logit_softcapping", None),
            dropout=0.0 if shares else _dropout_of(config),
        )


def _dropout_of(config: Any) -> float:
    return getattr(config, "attention_dropout", None) or getattr(config, "attn_pdrop", None) or 0.0


def why_not(path: str, facts: Facts) -> str | None:
    """
    Returns why a path is not exact or cannot be had, with what would change it; `None` if it can.

    Args:
        path (`str`):
            A key of [`DESCRIPTIONS`].
        facts ([`Facts`]):
            Facts.

    Returns:
        `str`, *optional*
    """
    attention = facts.attention or "eager"
    of_path = {
        "flash": ("flash" in attention, "`attn_implementation='flash_attention_2'`"),
        "segments": (attention == "sdpa" and facts.device == "cpu", "`attn_implementation='sdpa'` on a CPU"),
        "varlen": (attention == "sdpa", "`attn_implementation='sdpa'`"),
        "flex": (attention == "flex_attention", "`attn_implementation='flex_attention'`"),
        "dense": (attention in ("sdpa", "eager"), "`attn_implementation='sdpa'` or `'eager'`"),
    }
    fits, needs = of_path[path]
    if not fits:
        return f"it needs {needs}; this is `{attention!r}` on {facts.device!r}"
    if path in ("flash", "segments", "varlen") and not facts.hands_on:
        return "the layers of this model are not handed the arguments of its forward"
    if path == "varlen" and not facts.has_kernel:
        what = f"torch {facts.torch_version} has no variable-length FlashAttention for {facts.device!r}"
        return f"{what}; 2.11 or later has, on GPUs of NVIDIA"
    if path in ("flash", "varlen") and facts.dtype not in HALF:
        name = str(facts.dtype).removeprefix("torch.")
        return f"FlashAttention does not compute in {name}; `bf16=True` makes it possible"
    return _why_not_varlen(facts) if path == "varlen" else None


def _why_not_varlen(facts: Facts) -> str | None:
    if facts.capability is not None and facts.capability < _CAPABILITY:
        found, least = (".".join(map(str, capability)) for capability in (facts.capability, _CAPABILITY))
        return f"the GPU has compute capability {found}, and FlashAttention needs {least}"
    if len(set(facts.head_sizes)) > 1:
        return f"queries and values have heads of {facts.head_sizes[0]} and {facts.head_sizes[1]}"
    size = facts.head_sizes[0]
    if size > _LARGEST_HEAD or size % _MULTIPLE_OF_HEAD:
        return f"heads of {size}: FlashAttention takes multiples of {_MULTIPLE_OF_HEAD} up to {_LARGEST_HEAD}"
    if facts.softcap is not None:
        return "torch's FlashAttention has no soft cap; `attn_implementation='flash_attention_2'` has"
    if facts.dropout:
        return f"torch's FlashAttention has no dropout (`attention_dropout={facts.dropout}`)"
    return None


def choose_path(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype, asked: str = "auto", shares: bool = True
) -> tuple[str | None, str]:
    """
    Returns the path of a model, and why it has no better one.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        device (`torch.device`):
            Where it is going to run.
        dtype (`torch.dtype`):
            Dtype that attention computes in.
        asked (`str`, *optional*, defaults to `"auto"`):
            One of [`PATHS`].
        shares (`bool`, *optional*, defaults to `True`):
            Whether completions share their prompt, and not only a row.

    Returns:
        `tuple[str | None, str]`: A key of [`DESCRIPTIONS`], or `None` for separate rows; and the reason, empty if
        there is no better path.

    Raises:
        ValueError: If the path that is asked for is not exact, with the reason.
    """
    if asked == "separate":
        return None, "`attention_path='separate'`"
    facts = Facts.of(model, device, dtype, shares)
    whole_rows = whole_rows_for_model(model)
    if asked != "auto":
        reason = whole_rows or why_not(asked, facts)
        if reason is not None:
            raise ValueError(f"`attention_path={asked!r}` cannot be had: {reason}. Leave it out.")
        return asked, ""
    if whole_rows is not None:
        return None, whole_rows
    path = next((path for path in DESCRIPTIONS if why_not(path, facts) is None), None)
    if path is None:
        flash = why_not("flash", facts) if "flash" in facts.attention else None
        return None, flash or f"`attn_implementation={facts.attention!r}` has no mask of this kind; 'sdpa' has"
    if facts.device == "cpu" or path in ("flash", "varlen", "flex"):
        return path, ""
    return path, why_not("varlen", facts) or ""
