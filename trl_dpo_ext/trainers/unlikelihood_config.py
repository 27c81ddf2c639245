"""Options of `UnlikelihoodTrainer`."""

import math
from dataclasses import dataclass, field

from trl import DPOConfig
from typing_extensions import Self

from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["UnlikelihoodConfig"]


@dataclass
class UnlikelihoodConfig(BaseDPOConfig):
    r"""
    Configuration of [`UnlikelihoodTrainer`]. Options of [`trl.DPOConfig`] that only change DPO's loss are refused.

    Parameters:
        alpha (`float`, *optional*, defaults to `1.0`):
            Weight of the rejected answer, in [0, 1]. The paper sweeps 0.05, 0.1, 0.5 and 1.
        unlikelihood_form (`str`, *optional*, defaults to `"sequence"`):
            `"sequence"`: the paper's, which adds \\( \alpha \log \pi_\theta(y_l|x) \\) and has no lower bound.
            `"token"`: that of Welleck et al., \\( -\alpha \sum_t \log(1 - \pi_\theta(y_{l,t})) \\), which has.
        divergence_guard (`float`, *optional*, defaults to `20.0`):
            Stop when the rejected answers' tokens have become less likely than \\( e^{-20} \\) on the mean of a
            micro-batch (a uniform guess among 50,000 tokens is \\( e^{-10.8} \\)). `None` switches it off; losses that
            are not finite stop a run in any case.
        reference_free (`bool`, *optional*):
            The objective needs no reference. `None`: none is kept, unless one is passed as `ref_model`; `False`: the
            reference that DPO would have is kept, and implicit rewards are logged against it, at the cost of its
            forward; `True`: never.
        beta (`float`, *optional*):
            Factor of the logged implicit rewards. The objective has none.

    The options that all trainers share are documented in [`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`].
    """

    alpha: float = field(default=1.0, metadata={"help": "Weight of the rejected answer, in [0, 1]."})
    unlikelihood_form: str = field(
        default="sequence",
        metadata={
            "help": "'sequence': alpha log pi(y_l) (paper). 'token': -alpha sum log(1 - pi) (Welleck et al.).",
            "choices": ["sequence", "token"],
        },
    )
    divergence_guard: float | None = field(
        default=20.0, metadata={"help": "Stop when rejected tokens fall below minus this many nats. null: never."}
    )
    reference_free: bool | None = field(
        default=None, metadata={"help": "Keep no reference. Default: none unless `ref_model` is passed."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()

    @classmethod
    def from_trl(cls, args: DPOConfig) -> Self:
        config = super().from_trl(args)
        config._check()
        return config

    def _check(self) -> None:
        self.check_beta()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"`alpha={self.alpha}` must lie in [0, 1]. At 0 the rejected answers say nothing.")
        if self.unlikelihood_form not in ("sequence", "token"):
            raise ValueError(
                f"`unlikelihood_form={self.unlikelihood_form!r}` does not exist. Choose one of 'sequence', 'token'."
            )
        guard = self.divergence_guard
        if guard is not None and not (math.isfinite(guard) and guard > 0):
            raise ValueError(f"`divergence_guard={guard}` must be above 0, or `None` for no guard.")
        self.check_no_pairwise_options("unlikelihood")
        if self.reference_free is not False:
            self.check_no_reference_options()
