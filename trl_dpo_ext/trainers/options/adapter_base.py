"""Base model of an adapter, as named in its folder."""

import json
from pathlib import Path
from typing import Any

from peft import PeftType


__all__ = ["check_base", "is_path", "read_adapter_config"]


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """
    Reads the `adapter_config.json` in `folder`.

    Raises:
        ValueError: If the file is not a JSON mapping with a kind of adapter.
    """
    path = Path(folder, "adapter_config.json")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}. Save the adapter again.") from None
    config = config if isinstance(config, dict) else {}
    for name, is_right in {
        "peft_type": config.get("peft_type") in list(PeftType),
        "base_model_name_or_path": isinstance(config.get("base_model_name_or_path"), (str, type(None))),
    }.items():
        if not is_right:
            raise ValueError(f"{path} has no `{name}` that PEFT supports. Save the adapter again.")
    return config


def check_base(folder: str | Path, base: str | None) -> None:
    """
    Checks that the base model of an adapter exists.

    Args:
        folder (`str` or `Path`):
            Folder of the adapter.
        base (`str`, *optional*):
            Folder or hub name of the base model.

    Raises:
        ValueError: If there is none, or it is a path that does not exist.
    """
    if not base:
        raise ValueError(
            f"{folder} is an adapter, but neither its adapter_config.json nor its trainer recorded its base model, "
            "which was built in memory. Save that model, and write its folder as `base_model_name_or_path` into "
            "adapter_config.json."
        )
    if is_path(base) and not Path(base).is_dir():
        raise ValueError(
            f"The adapter in {folder} was trained on the model in {base}, which does not exist here. Restore it, or "
            f"write its folder as `base_model_name_or_path` into {Path(folder, 'adapter_config.json')}."
        )


def is_path(name: str) -> bool:
    """Whether a model name can only be a path, because hub names have at most one slash."""
    path = Path(name)
    return path.is_absolute() or len(path.parts) > 2 or name.startswith(".")
