"""The base model that an adapter's folder names."""

import json
from pathlib import Path
from typing import Any

from peft import PeftType


__all__ = ["check_base", "is_path", "read_adapter_config"]


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """
    Reads the `adapter_config.json` in `folder`.

    Raises:
        ValueError: If it is not a JSON mapping that names a kind of adapter.
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
            raise ValueError(f"{path} has no `{name}` that PEFT knows. Save the adapter again.")
    return config


def check_base(folder: str | Path, base: str | None) -> None:
    """
    Checks that an adapter's base model is where its config says.

    Args:
        folder (`str` or `Path`):
            Folder of the adapter.
        base (`str`, *optional*):
            Folder or hub name of its base model.

    Raises:
        ValueError: If there is none, or it is a path and no folder is there.
    """
    if not base:
        raise ValueError(
            f"{folder} is an adapter, and neither its adapter_config.json nor its trainer says of which base model: "
            "it was trained on one built in memory. Save that one, and write its folder as `base_model_name_or_path` "
            "into adapter_config.json."
        )
    if is_path(base) and not Path(base).is_dir():
        raise ValueError(
            f"The adapter in {folder} was trained on the model in {base}, which is not there. Put it back, or write "
            f"its folder as `base_model_name_or_path` into {Path(folder, 'adapter_config.json')}."
        )


def is_path(name: str) -> bool:
    """Whether a model's name can only be a path: names on the hub have one slash at most."""
    path = Path(name)
    return path.is_absolute() or len(path.parts) > 2 or name.startswith(".")
