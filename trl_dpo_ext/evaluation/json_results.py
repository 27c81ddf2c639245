"""Results as JSON."""

import json
import math
from pathlib import Path
from typing import Any

from trl_dpo_ext.whole_file import write_text


__all__ = ["as_json", "write_json"]


def as_json(value: Any) -> Any:
    """Returns a result with `None` in place of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: as_json(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [as_json(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(path: Path, result: Any) -> None:
    """Writes a result of [`as_json`]."""
    write_text(path, json.dumps(result, indent=2) + "\n")
