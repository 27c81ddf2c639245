"""Adapter of a recipe."""

from typing import Any

from trl import ModelConfig, get_peft_config

from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["adapter_config"]


def adapter_config(args: BaseDPOConfig, model: ModelConfig) -> Any:
    """Returns the [`~peft.PeftConfig`] of a recipe, or `None`. By default it adapts all linear layers, unlike PEFT."""
    config: Any = get_peft_config(model)
    if config is not None and config.target_modules is None and args.preset != "trl":
        config.target_modules = "all-linear"  # PEFT's default is some attention matrices or an error
    return config
