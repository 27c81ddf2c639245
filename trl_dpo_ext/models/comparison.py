"""Comparison of two ways to run a model: errors that mean a way is not supported, and evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


__all__ = ["ERRORS", "in_evaluation_mode"]

# Errors of a model that cannot be run in a certain way
ERRORS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Sets all modules to evaluation mode, without dropout, and restores their modes afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
