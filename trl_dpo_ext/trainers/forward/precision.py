"""What precision the forwards of a trainer compute in, which need not be what was asked for."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import PreTrainedModel


__all__ = ["autocast_of", "compute_dtype", "lowered_precision"]


def autocast_of(accelerator: Accelerator) -> str:
    """The autocast that forwards run under: `"no"`, `"bf16"` or `"fp16"`."""
    if not accelerator.native_amp:  # fp16 on a CPU; DeepSpeed, which casts the weights instead
        return "no"
    # accelerate runs what fp8 leaves over in bfloat16
    return "fp16" if accelerator.mixed_precision == "fp16" else "bf16"


def lowered_precision(accelerator: Accelerator) -> str:
    """As [`autocast_of`], and of weights that DeepSpeed casts when it takes them over."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.mixed_precision
    return autocast_of(accelerator)


def compute_dtype(accelerator: Accelerator, model: PreTrainedModel) -> torch.dtype:
    """Dtype of a model's forward: autocast's, else that of its weights."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(lowered_precision(accelerator), model.dtype)
