"""Python processes that start faster, and do not pay for their imports or for devices they lack in every training."""

import gc
import importlib.metadata
from functools import cache
from types import SimpleNamespace


def before_imports() -> None:
    """To be called before torch, transformers and TRL are imported."""
    # A package's metadata are read from disk each time that accelerate asks whether it is installed, many times a
    # training, and that a model card or a file of scores states its version
    importlib.metadata.metadata = cache(importlib.metadata.metadata)
    importlib.metadata.version = cache(importlib.metadata.version)
    # Imports make objects that stay, and to look for garbage among them is a sixth of their time
    gc.disable()


def after_imports() -> None:
    """To be called once everything is imported, and again where more may have been."""
    gc.enable()
    # Every later collection would look at the objects of the imports again
    gc.collect()
    gc.freeze()


def without_devices() -> None:
    """To be called in a process that trains. Where there are devices they stay as they are."""
    import torch
    from accelerate.utils import memory

    for devices in (torch.cuda, torch.xpu, torch.mtia):
        if not devices.is_available():
            # It would keep every seed for a device to come, and with each the stack in which it was set
            devices.manual_seed_all = lambda seed: None
    if not torch.cuda.is_available():
        # It would collect garbage at every training, to give a device its memory back. Python's own collections find
        # the little that a tiny run leaves.
        memory.gc = SimpleNamespace(collect=lambda: 0)
