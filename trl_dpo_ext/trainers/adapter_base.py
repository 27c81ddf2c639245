"""The base model that an adapter's folder names."""

import json
from pathlib import Path
from typing import Any


__all__ = ["check_base", "is_path", "read_adapter_config"]


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """
    Reads the `adapter_config.json` in `folder`.

    Raises:
        ValueError: If it is not a JSON mapping, or its `base_model_name_or_path` is no text.
    """
    path = Path(folder, "adapter_config.json")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}. Save the adapter again.") from None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else config
    if not isinstance(config, dict) or not isinstance(base, (str, type(None))):
        raise ValueError(f"{path} is not a mapping that names a base model. Save the adapter again.")
    return config


def check_base(folder: str | Path, base: str) -> None:
    """
    Checks that an adapter's base model is where its config says.

    Args:
        folder (`str` or `Path`):
            Folder of the adapter.
        base (`str`):
            Folder or hub name of its base model.

    Raises:
        ValueError: If that is a path and no folder is there.
    """
    if is_path(base) and not Path(base).is_dir():
        raise ValueError(
            f"The adapter in {folder} was trained on the model in {base}, which is not there. Put it back, or write "
            f"its folder as `base_model_name_or_path` into {Path(folder, 'adapter_config.json')}."
        )


def is_path(name: str) -> bool:
    """Whether a model's name can only be a path: names on the hub have one slash at most."""
    path = Path(name)
    return path.is_absolute() or len(path.parts) > 2 or name.startswith(".")
