"""The reference inside a PEFT model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl_dpo_ext.compat import use_adapter


__all__ = ["use_reference_adapter"]


@contextmanager
def use_reference_adapter(model: Any) -> Iterator[None]:
    """Runs the reference inside a PEFT model: the adapter `"ref"` if there is one, else the model without adapter."""
    # PEFT changes these when it switches adapters
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with use_adapter(model, "ref" if "ref" in model.peft_config else None):
            yield
    finally:
        for parameter, requires_grad in trainable:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
