"""Options of `RankingDPOTrainer`."""

from dataclasses import dataclass, field

from trl import DPOConfig
from typing_extensions import Self

from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["RankingDPOConfig"]


@dataclass(repr=False)
class RankingDPOConfig(BaseDPOConfig):
    r"""
    Configuration of [`RankingDPOTrainer`]. Options of [`trl.DPOConfig`] that only change a pairwise loss are refused.

    Parameters:
        top_m (`int`, *optional*):
            Only the first `top_m` places of each ranking are observed; what comes after them is below, in no order.
        max_completions (`int`, *optional*):
            Most completions a row may have. A row with more is an error; none is dropped.
        score_tie_gap (`float`, *optional*, defaults to `0.0`):
            Scores that are this close to the best of their group, or closer, tie.
        reference_free (`bool`, *optional*, defaults to `False`):
            Train against no reference: rewards are \\( \beta \log \pi_\theta(y|x) \\), and no reference model is kept.

    The options that all trainers share are documented in [`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`].
    """

    top_m: int | None = field(
        default=None, metadata={"help": "Only the first places of a ranking are observed. Default: all."}
    )
    max_completions: int | None = field(
        default=None, metadata={"help": "Most completions a row may have; a longer row is an error. Default: any."}
    )
    score_tie_gap: float = field(
        default=0.0, metadata={"help": "Scores this close to the best of their group, or closer, tie."}
    )
    reference_free: bool = field(
        default=False,
        metadata={"help": "Train against no reference: rewards are beta log pi. No reference model is kept."},
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
