"""Result of the forward passes over a batch."""

from dataclasses import dataclass

from torch import Tensor

from trl_dpo_ext.logps import CompletionLogps


__all__ = ["BatchResult"]


@dataclass(frozen=True)
class BatchResult:
    """
    A batch of B prompts with up to K completions after the forward passes.

    Args:
        losses (`torch.Tensor` of shape `(B,)`): Losses, with gradient.
        rewards (`torch.Tensor` of shape `(B, K)`): Implicit rewards, detached.
        policy ([`~trl_dpo_ext.logps.CompletionLogps`]): Log-probabilities under the policy, `(B, K, ...)`.
        ref_logps (`torch.Tensor` of shape `(B, K)`, *optional*): Reference log-probabilities, in nats.
        ref_token_logps (`torch.Tensor` of shape `(B, K, T - 1)`, *optional*): Reference log-probabilities of tokens.
            `None` if there is no reference or only sums are cached.
        ranks (`torch.Tensor` of shape `(B, K)`, int): 0 for the best, equal for ties.
        exists (`torch.Tensor` of shape `(B, K)`, bool): `True` where a completion exists.
        weights (`torch.Tensor` of shape `(B,)`): 1 for real examples, 0 for repeated ones.
        order_losses (`torch.Tensor` of shape `(B,)`, *optional*): Minus the log-probability of the observed order, for
            objectives that have one.
    """

    losses: Tensor
    rewards: Tensor
    policy: CompletionLogps
    ref_logps: Tensor | None
    ref_token_logps: Tensor | None
    ranks: Tensor
    exists: Tensor
    weights: Tensor
    order_losses: Tensor | None = None

    @property
    def worst_rank(self) -> Tensor:
        """Rank of the worst completion of each prompt, `(B,)`. 0 if all completions tie."""
        return self.ranks.masked_fill(~self.exists, -1).amax(dim=1)
