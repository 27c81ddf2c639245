"""Python processes that start faster, and do not pay for their imports again in every training."""

import gc
import importlib.metadata
from functools import cache


def before_imports() -> None:
    """To be called before torch, transformers and TRL are imported."""
    # accelerate reads a package's metadata from disk each time that it asks whether it is installed, many times a
    # training
    importlib.metadata.metadata = cache(importlib.metadata.metadata)
    # Imports make objects that stay, and to look for garbage among them is a sixth of their time
    gc.disable()


def after_imports() -> None:
    """To be called once everything is imported, and again where more may have been."""
    gc.enable()
    # accelerate collects garbage after every training. Half of a tiny run would go into the objects of the imports.
    gc.collect()
    gc.freeze()
