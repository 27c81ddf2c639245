"""What comparing two ways to run a model takes: the errors that mean no, and evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


__all__ = ["ERRORS", "in_evaluation_mode"]

# What a model raises that cannot be run in a way
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
    """Has all modules in evaluation mode, without dropout, and each in its own again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
