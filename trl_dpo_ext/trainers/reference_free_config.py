"""Options that the baselines share, whose objectives need no reference."""

from dataclasses import dataclass, field

from trl import DPOConfig
from typing_extensions import Self

from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["ReferenceFreeConfig"]


@dataclass(repr=False)
class ReferenceFreeConfig(BaseDPOConfig):
    r"""
    Options of an objective that needs no reference. Those that only change a pairwise loss of TRL's are refused.

    Parameters:
        reference_free (`bool`, *optional*):
            `None`: no reference is kept, unless one is passed as `ref_model`; `False`: the reference that DPO would
            have is kept, and implicit rewards are logged against it, at the cost of its forward; `True`: never.
        beta (`float`, *optional*):
            Factor of the logged implicit rewards, without a reference \\( \beta \log \pi_\theta(y|x) \\). The
            objective has none.
    """

    reference_free: bool | None = field(
        default=None, metadata={"help": "Keep no reference. Default: none unless `ref_model` is passed."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()

    @classmethod
    def from_trl(cls, args: DPOConfig) -> Self:
        config = super().from_trl(args)
        config.check()
        return config

    def check(self) -> None:
        """Raises a `ValueError` for a value that does not exist or would have no effect."""
        self.check_no_pairwise_options("this objective")
        if self.reference_free is not False:
            self.check_no_reference_options()
