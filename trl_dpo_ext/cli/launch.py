"""What the commands that load a model and do not train share: connected processes, and errors of the model's name."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any


__all__ = ["connect", "hub_name_explained"]


def connect(device: str | None) -> Any:
    """
    Connects the processes of a launch, with a backend that fits the device.

    Args:
        device (`str`, *optional*):
            Value of `--device`.

    Returns:
        `accelerate.PartialState`

    Raises:
        ValueError: If the device would be that of several processes.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Without an accelerator, only `cpu=True` connects the processes. A finished process waits for the others
    cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))
    if state.num_processes > 1 and device not in (None, "cpu"):
        raise ValueError(f"--device {device} would use one device for all processes. Leave it out.")
    return state


@contextmanager
def hub_name_explained(model: str) -> Iterator[None]:
    """Names a model that is not a folder in the error that loading it raises, because it was taken as a hub name."""
    try:
        yield
    except (ValueError, OSError) as error:
        if Path(model).is_dir():
            raise
        raise ValueError(f"{model} is not a folder, and as a hub name it gives: {error}") from error
