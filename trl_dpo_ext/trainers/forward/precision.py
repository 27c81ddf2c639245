"""Precision of a trainer's forward passes, which may differ from the options."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import PreTrainedModel


__all__ = ["autocast_of", "compute_dtype", "lowered_precision"]


def autocast_of(accelerator: Accelerator) -> str:
    """Returns the autocast of the forward passes: `"no"`, `"bf16"` or `"fp16"`."""
    if not accelerator.native_amp:  # fp16 on a CPU, or DeepSpeed, which casts the weights instead
        return "no"
    # With fp8, accelerate runs the other operations in bfloat16
    return "fp16" if accelerator.mixed_precision == "fp16" else "bf16"


def lowered_precision(accelerator: Accelerator) -> str:
    """Same as [`autocast_of`], but includes weights that DeepSpeed casts."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.mixed_precision
    return autocast_of(accelerator)


def compute_dtype(accelerator: Accelerator, model: PreTrainedModel) -> torch.dtype:
    """Returns the dtype of a model's forward pass: that of autocast or of its weights."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(lowered_precision(accelerator), model.dtype)
