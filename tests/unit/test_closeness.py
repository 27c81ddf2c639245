"""The comparisons themselves, in both precisions: two orders of summation pass, a difference of 1e-4 does not."""

from functools import reduce

import pytest
import torch
from closeness import EXACT, FLOAT32, assert_within_rounding, in_float64, same


def test_everything_is_float64():
    with in_float64():
        assert torch.zeros(1).dtype == torch.zeros(1, dtype=torch.float32).dtype == torch.float64
        assert torch.ones(1, dtype=torch.bfloat16).float().dtype == torch.float64
        assert torch.nn.Linear(1, 1).float().weight.dtype == torch.float64
    assert torch.zeros(1).dtype == torch.float32 == FLOAT32
    assert torch.ones(1, dtype=torch.bfloat16).float().dtype == FLOAT32


def test_it_ends_with_an_error():
    with pytest.raises(RuntimeError), in_float64():
        raise RuntimeError
    assert torch.zeros(1).dtype == torch.float32 == FLOAT32


@pytest.mark.parametrize("value", [1e-3, 1.0, 200.0])
def test_two_orders_in_float64(value):
    numbers = value * torch.rand(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert numbers.flip(0).cumsum(0)[-1].item() == same(numbers.cumsum(0)[-1].item())
    assert value * (1 + 1e-4) != same(value)
    assert value * (1 + 1e4 * EXACT) != same(value)


def test_two_orders_in_float32():
    numbers = torch.rand(64, 1_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(FLOAT32)
    trusted, found = (reduce(torch.add, some.unbind(1)) for some in (numbers, numbers.flip(1)))
    exact = numbers.double().sum(1)
    assert not torch.equal(found, trusted)
    assert_within_rounding({"sums": found}, {"sums": trusted}, {"sums": exact})
    assert_within_rounding({"sums": exact.to(FLOAT32)}, {"sums": trusted}, {"sums": exact})
    for sums in (found * (1 + 1e-4), numbers.half().float().sum(1)):
        with pytest.raises(AssertionError, match="from float64"):
            assert_within_rounding({"sums": sums}, {"sums": trusted}, {"sums": exact})


def test_a_result_that_happens_to_be_exact():
    """The other one may still be rounded."""
    exact = {"sums": torch.tensor([1.0, 3.0], dtype=torch.float64)}
    assert_within_rounding({"sums": torch.tensor([1.0 + 2e-7, 3.0])}, {"sums": torch.tensor([1.0, 3.0])}, exact)
