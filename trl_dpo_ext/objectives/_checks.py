"""Checks of shapes, options and dtypes shared by `objectives`, `rewards` and `theory`."""

import math
from functools import reduce
from numbers import Real

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any input is, else float32: half precision is not exact enough for sums of log-probabilities."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def check_beta(beta: float) -> None:
    if not (isinstance(beta, Real) and math.isfinite(beta) and beta > 0):
        raise ValueError(f"Expected `beta` to be a finite number above 0 (the paper uses 0.1), got {beta!r}.")


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    # Never broadcast: (B,) with (B, 1) would give (B, B), whose mean looks plausible
    if tensor.shape != other.shape:
        raise ValueError(
            f"Expected `{name}` and `{other_name}` of one shape, got {tuple(tensor.shape)} and {tuple(other.shape)}."
        )


def check_logps(
    policy_logps: Tensor, ref_logps: Tensor | None, *, pairs: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Checks that the inputs are `(B, K)` (`(B, 2)` with `pairs`) and returns them in the dtype to compute in."""
    shape = tuple(policy_logps.shape)
    if pairs and (len(shape) != 2 or shape[1] != 2):
        raise ValueError(f"Expected `policy_logps` of shape (B, 2), columns chosen and rejected, got {shape}.")
    if len(shape) != 2:
        raise ValueError(f"Expected `policy_logps` of shape (B, K), one column per completion, got {shape}.")
    if ref_logps is None:
        return policy_logps.to(compute_dtype(policy_logps)), None
    check_same_shape("policy_logps", policy_logps, "ref_logps", ref_logps)
    dtype = compute_dtype(policy_logps, ref_logps)
    return policy_logps.to(dtype), ref_logps.to(dtype)
