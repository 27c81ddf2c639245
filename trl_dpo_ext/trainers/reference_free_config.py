"""Options of the baselines whose objectives need no reference."""

from dataclasses import dataclass, field
from typing import Self

from trl import DPOConfig

from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["ReferenceFreeConfig"]


@dataclass(repr=False)
class ReferenceFreeConfig(BaseDPOConfig):
    r"""
    Options of an objective without a reference. Options that only affect TRL's pairwise losses raise an error.

    Parameters:
        reference_free (`bool`, *optional*):
            `None`: no reference is kept, unless one is passed as `ref_model`; `False`: the default reference of DPO is
            kept and implicit rewards are logged, which needs its forward pass; `True`: never.
        beta (`float`, *optional*):
            Factor of the logged implicit rewards, which are \\( \beta \log \pi_\theta(y|x) \\) without a reference.
            The objective does not use it.
    """

    reference_free: bool | None = field(
        default=None, metadata={"help": "Keep no reference. Default: none, unless `ref_model` is passed."}
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
        """Raises a `ValueError` for a value that is unknown or has no effect."""
        self.check_no_pairwise_options("this objective")
        if self.reference_free is not False:
            self.check_no_reference_options()
