"""Contents of the JSON file of an evaluation."""

from typing import Any


__all__ = ["entries_of"]


def entries_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the results of each policy and, last, of the reference, by name."""
    return {**result["policies"], result["reference"]["name"]: result["reference"]}
