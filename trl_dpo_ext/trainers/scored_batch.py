"""What the forward passes over a batch give."""

from dataclasses import dataclass, field

from torch import Tensor

from trl_dpo_ext.logps import CompletionLogps


__all__ = ["ScoredBatch"]


@dataclass
class ScoredBatch:
    """
    A batch of B pairs after the forward passes.

    Args:
        losses (`torch.Tensor` of shape `(B,)`): Losses, with gradient.
        rewards (`torch.Tensor` of shape `(B, 2)`): Implicit rewards, detached.
        ref_logps (`torch.Tensor` of shape `(B, 2)`, *optional*): Reference log-probabilities.
        policy ([`~trl_dpo_ext.logps.CompletionLogps`]): What the policy says of the `2B` completions.
        weights (`torch.Tensor` of shape `(B,)`): 1 for real rows, 0 for repeated ones.
        ref_token_logps (`torch.Tensor` of shape `(2B, T - 1)`, *optional*): Reference log-probabilities of each token,
            as `policy.token_logps`; `None` where there is no reference or only its sums are cached.
    """

    losses: Tensor
    rewards: Tensor
    ref_logps: Tensor | None
    policy: CompletionLogps
    weights: Tensor
    ref_token_logps: Tensor | None = field(default=None, kw_only=True)
