"""
Presets, with the source of each value.

A preset sets options that the user has not set. Values that are passed explicitly replace those of the preset.
"""

from dataclasses import MISSING, fields
from typing import Any

from transformers.utils import is_torch_tf32_available
from trl import DPOConfig


__all__ = ["PRESETS", "preset_values"]

# App. B of the paper, or the authors' code (commit f8b8c0f) for values that the paper does not give
_PAPER: dict[str, Any] = {
    "beta": 0.1,  # App. B
    "global_batch_size": 64,  # App. B
    "optim": "rmsprop",  # App. B
    "learning_rate": 1e-6,  # App. B
    "lr_scheduler_type": "constant_with_warmup",  # "linearly warmup from 0 to 1e-6"; the code then keeps it constant
    "warmup_steps": 150,  # App. B
    "max_grad_norm": 10.0,  # config.yaml
    "num_train_epochs": 1.0,  # config.yaml
    "max_length": 512,  # config.yaml
    "tokenization": "separate",  # preference_datasets.py
    "prompt_truncation_mode": "keep_end",  # preference_datasets.py, for dialogue
    "bf16": False,  # config/model/*.yaml: a float32 policy without autocast
    "tf32": True,  # trainers.py; no effect if the hardware does not support it
}

# Options that TRL does not have, with values that reproduce TRL
_TRL_ONLY_OURS: dict[str, Any] = {"global_batch_size": None, "tokenization": "joint", "prompt_truncation_mode": None}

PRESETS = ("paper", "paper_tldr", "authors_code", "trl")


def _trl_default(name: str) -> Any:
    for field in fields(DPOConfig):
        if field.name == name:
            return field.default if field.default is not MISSING else field.default_factory()
    raise AttributeError(f"`trl.DPOConfig` has no option `{name}`")


def preset_values(preset: str) -> dict[str, Any]:
    """
    Returns the options that a preset sets.

    Args:
        preset (`str`):
            `"paper"` (App. B, or the authors' code for values that it does not give), `"paper_tldr"` (the same with
            beta 0.5, for TL;DR), `"authors_code"` (the same with the code's learning rate, 5e-7) or `"trl"` (the
            defaults of the installed [`trl.DPOConfig`]).

    Returns:
        `dict[str, Any]`: Option names and values.

    Raises:
        ValueError: If there is no such preset.
    """
    if preset == "trl":
        return {name: _TRL_ONLY_OURS[name] if name in _TRL_ONLY_OURS else _trl_default(name) for name in _PAPER}
    paper = _PAPER | {"tf32": True if is_torch_tf32_available() else None}
    if preset == "paper":
        return paper
    if preset == "paper_tldr":
        return paper | {"beta": 0.5, "prompt_truncation_mode": "keep_start"}
    if preset == "authors_code":
        return paper | {"learning_rate": 5e-7}
    raise ValueError(f"`preset={preset!r}` does not exist. Choose one of {', '.join(map(repr, PRESETS))}.")
