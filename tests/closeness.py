"""
Two computations of the same number: when their results are equal, and why that much may lie between them.

Sums that are added up in another order differ in their last bits. How much depends on the processor, its vector
instructions and the number of threads, so a tolerance that was read off one machine is wrong on another.

- **In float64** ([`in_float64`]) everything that computes in float32 computes in float64. What two orders of summation
  differ by is then 1e-16 of a number's size and at most 1e-12 after a few updates. [`EXACT`] is a hundred times that,
  and a millionth of the smallest fault that matters (1e-4).
- **In float32**, where float32 is the point ([`assert_within_rounding`]): both results are compared with a third, of
  the same computation in float64. The distance of the trusted one is what a correct order of summation needs on this
  machine; the tested one may be a small multiple as far away.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations import moe


FLOAT32 = torch.float32  # in `in_float64`, too
EXACT = 1e-10
ROUNDING = torch.finfo(FLOAT32).eps  # of one number stored in float32
# Errors of two correct orders are draws of one size, taken here as norms over many numbers
MULTIPLE = 4.0


@contextmanager
def in_float64() -> Iterator[None]:
    """
    Makes `torch.float32` mean float64: defaults, casts, buffers and accumulators of torch, transformers, TRL and ours.

    A model in float64 does not do it alone: norms, rotary positions, softmax and TRL's LM head ask for float32 by
    name. What is compared with `torch.float32` takes the path of float32. Files of float32 cannot be read meanwhile
    (`tiny.save_tiny` writes float64), and autocast and quantized weights know no float64.
    """
    torch.storage._dtype_to_storage_type_map()  # torch keeps the first answer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(Tensor, "float", Tensor.double)
        patch.setattr(nn.Module, "float", nn.Module.double)
        patch.setattr(moe, "_can_use_grouped_mm", lambda *args: False)  # no kernel for float64 in torch 2.13
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(FLOAT32)


def drawn_in_float32(make: Callable[[], nn.Module]) -> nn.Module:
    """The model that `make` makes, with the same random weights in float32 and in float64."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(FLOAT32)
    try:
        return make().to(dtype)
    finally:
        torch.set_default_dtype(dtype)


def same(expected: Any, **options: Any) -> Any:
    """`pytest.approx` with the tolerance of computations in float64."""
    return pytest.approx(expected, rel=EXACT, abs=EXACT, **options)


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Norm of the difference of all tensors together, as a share of the norm of the expected ones."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    gaps = [found[name].detach().double() - expected[name].detach().double() for name in expected]
    size = torch.stack([tensor.detach().double().norm() for tensor in expected.values()]).norm()
    return float(torch.stack([gap.norm() for gap in gaps]).norm() / size)


def assert_within_rounding(
    found: Mapping[str, Tensor], trusted: Mapping[str, Tensor], exact: Mapping[str, Tensor]
) -> None:
    """
    Asserts that a float32 result is as exact as another order of summation is.

    Args:
        found (`Mapping[str, torch.Tensor]`): Result in float32.
        trusted (`Mapping[str, torch.Tensor]`): Result in float32 of another, correct order of summation.
        exact (`Mapping[str, torch.Tensor]`): Result in float64.
    """
    # A result that happens to be exact is still rounded to float32 where it is stored
    allowed = MULTIPLE * max(distance(trusted, exact), ROUNDING)
    assert distance(found, exact) <= allowed, f"{distance(found, exact):.3g} from float64, allowed {allowed:.3g}"
