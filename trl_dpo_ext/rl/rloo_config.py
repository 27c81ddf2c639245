"""Options of `RLOOPaperTrainer`."""

from dataclasses import dataclass

from trl import RLOOConfig

from trl_dpo_ext.rl.options import RLOptions


__all__ = ["RLOOPaperConfig"]


@dataclass
class RLOOPaperConfig(RLOptions, RLOOConfig):  # type: ignore[misc]
    r"""
    Configuration of [`RLOOPaperTrainer`]: that of [`trl.RLOOConfig`], with the defaults of
    [`~trl_dpo_ext.rl.options.RLOptions`].
    """
