"""Names of the precisions that models compute in."""

import torch


__all__ = ["PRECISIONS"]

# Values of `mixed_precision`, named as in accelerate, and their autocast dtypes
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
