"""Options of `UnlikelihoodTrainer`."""

import math
from dataclasses import dataclass, field

from trl_dpo_ext.trainers.reference_free_config import ReferenceFreeConfig


__all__ = ["UnlikelihoodConfig"]


@dataclass(repr=False)
class UnlikelihoodConfig(ReferenceFreeConfig):
    r"""
    Configuration of [`UnlikelihoodTrainer`]. Options of [`trl.DPOConfig`] that only affect DPO's loss raise an error.

    Parameters:
        alpha (`float`, *optional*, defaults to `1.0`):
            Weight of the rejected answer, in [0, 1]. The paper sweeps 0.05, 0.1, 0.5 and 1.
        unlikelihood_form (`str`, *optional*, defaults to `"sequence"`):
            `"sequence"`: the paper's form, which adds \\( \alpha \log \pi_\theta(y_l|x) \\) and has no lower bound.
            `"token"`: the form of Welleck et al., \\( -\alpha \sum_t \log(1 - \pi_\theta(y_{l,t})) \\), with a lower
            bound.
        divergence_guard (`float`, *optional*, defaults to `20.0`):
            Stop if the tokens of rejected answers are less likely than \\( e^{-20} \\) on average in a micro-batch (a
            uniform guess among 50,000 tokens is \\( e^{-10.8} \\)). `None` disables this check. Non-finite losses
            always stop a run.

    `reference_free` and `beta` are documented in
    [`~trl_dpo_ext.trainers.reference_free_config.ReferenceFreeConfig`], options shared by all trainers in
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
        default=20.0, metadata={"help": "Stop if rejected tokens fall below minus this many nats. null: never."}
    )

    def check(self) -> None:
        super().check()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"`alpha={self.alpha}` must lie in [0, 1]. At 0 the rejected answers have no effect.")
        if self.unlikelihood_form not in ("sequence", "token"):
            raise ValueError(
                f"`unlikelihood_form={self.unlikelihood_form!r}` does not exist. Choose one of 'sequence', 'token'."
            )
        guard = self.divergence_guard
        if guard is not None and not (math.isfinite(guard) and guard > 0):
            raise ValueError(f"`divergence_guard={guard}` must be above 0, or `None` to disable it.")
