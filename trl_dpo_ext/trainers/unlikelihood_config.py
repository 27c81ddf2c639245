"""Options of `UnlikelihoodTrainer`."""

import math
from dataclasses import dataclass, field

from trl_dpo_ext.trainers.reference_free_config import ReferenceFreeConfig


__all__ = ["UnlikelihoodConfig"]


@dataclass(repr=False)
class UnlikelihoodConfig(ReferenceFreeConfig):
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

    `reference_free` and `beta` are documented in
    [`~trl_dpo_ext.trainers.reference_free_config.ReferenceFreeConfig`], the options that all trainers share in
    [`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`].
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

    def check(self) -> None:
        super().check()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"`alpha={self.alpha}` must lie in [0, 1]. At 0 the rejected answers say nothing.")
        if self.unlikelihood_form not in ("sequence", "token"):
            raise ValueError(
                f"`unlikelihood_form={self.unlikelihood_form!r}` does not exist. Choose one of 'sequence', 'token'."
            )
        guard = self.divergence_guard
        if guard is not None and not (math.isfinite(guard) and guard > 0):
            raise ValueError(f"`divergence_guard={guard}` must be above 0, or `None` for no guard.")
