"""The small JSON file that a trainer puts beside its weights: what the rewards of this policy are measured against."""

import json
from pathlib import Path
from typing import Any


__all__ = ["STATE_FILE", "check_same_reference", "read_state", "write_state"]

STATE_FILE = "trl_dpo_ext.json"


def write_state(folder: str | Path, state: dict[str, Any]) -> None:
    """Writes `state` into `folder`."""
    Path(folder, STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")


def read_state(folder: str | Path) -> dict[str, Any]:
    """Reads the state from `folder`; empty if a trainer of another package wrote it."""
    path = Path(folder, STATE_FILE)
    return json.loads(path.read_text()) if path.is_file() else {}


def check_same_reference(state: dict[str, Any], reference_hash: str | None, folder: str | Path) -> None:
    """
    Checks that a checkpoint was trained against the reference that this trainer has.

    Raises:
        ValueError: If the hashes differ.
    """
    saved = state.get("reference", {}).get("hash")
    if saved and reference_hash and saved != reference_hash:
        raise ValueError(
            f"The checkpoint {folder} was trained against another reference policy (hash {saved}) than this trainer "
            f"has (hash {reference_hash}). Build the trainer as in the interrupted run: its `model` is the policy "
            "that training started from, not the checkpoint."
        )
