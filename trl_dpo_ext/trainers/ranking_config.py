"""Options of `RankingDPOTrainer`."""

from dataclasses import dataclass, field
from typing import Self

from trl import DPOConfig

from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["RankingDPOConfig"]


@dataclass(repr=False)
class RankingDPOConfig(BaseDPOConfig):
    r"""
    Configuration of [`RankingDPOTrainer`]. Options of [`trl.DPOConfig`] that only affect pairwise losses are errors.

    Parameters:
        top_m (`int`, *optional*):
            Number of observed ranks. The completions after them are below, in unknown order.
        max_completions (`int`, *optional*):
            Maximum number of completions of a row. A row with more raises an error.
        score_tie_gap (`float`, *optional*, defaults to `0.0`):
            Scores tie with the best of their group if they are this close to it, or closer.
        reference_free (`bool`, *optional*, defaults to `False`):
            Whether to train without a reference: rewards are \\( \beta \log \pi_\theta(y|x) \\), and no reference
            model is kept.

    Options shared by all trainers are documented in [`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`].
    """

    top_m: int | None = field(default=None, metadata={"help": "Number of observed ranks of a ranking. Default: all."})
    max_completions: int | None = field(
        default=None, metadata={"help": "Maximum completions of a row; more are an error. Default: no limit."}
    )
    score_tie_gap: float = field(
        default=0.0, metadata={"help": "Scores tie with the best of their group if this close to it, or closer."}
    )
    reference_free: bool = field(
        default=False,
        metadata={"help": "Train without a reference: rewards are beta log pi, and no reference is kept."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_no_effect()

    @classmethod
    def from_trl(cls, args: DPOConfig) -> Self:
        config = super().from_trl(args)
        config._check_no_effect()
        return config

    def _check_no_effect(self) -> None:
        self.check_no_pairwise_options("rankings")
        if self.reference_free:
            self.check_no_reference_options()
