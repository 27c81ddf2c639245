"""Figures of ranked completions, as sums."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trl_dpo_ext.logps import to_groups
from trl_dpo_ext.metrics.comparisons import comparison_sums, pairs_of_ranking
from trl_dpo_ext.metrics.correlation import within_group_correlation_sums
from trl_dpo_ext.metrics.divergence import token_kl
from trl_dpo_ext.metrics.rankings import best_and_worst, best_and_worst_means, kendall_tau_b, mean_over
from trl_dpo_ext.metrics.sums import Sums, means
from trl_dpo_ext.shared_prompt.groups import PromptGroups
from trl_dpo_ext.trainers.scored_batch import ScoredBatch


__all__ = ["RankedBatch", "ranking_distributions", "ranking_sums"]


@dataclass
class RankedBatch(ScoredBatch):
    """
    A batch of B groups of up to K ranked completions after the forward passes.

    Args:
        order_losses (`torch.Tensor` of shape `(B,)`): Minus the log-probability of the observed order.
        logps (`torch.Tensor` of shape `(B, K)`): Log-probabilities under the policy, 0 where there is no completion.
        ranks (`torch.Tensor` of shape `(B, K)`, int): 0 for the best, equal for ties.
        rank_mask (`torch.Tensor` of shape `(B, K)`, bool): `True` where there is a completion.
        groups ([`~trl_dpo_ext.shared_prompt.groups.PromptGroups`]): Which completions are rows of `policy`.

    `rewards` and `ref_logps` have the shape `(B, K)`, and `policy` holds the N completions that exist, row by row.
    """

    order_losses: Tensor
    logps: Tensor
    ranks: Tensor
    rank_mask: Tensor
    groups: PromptGroups

    @property
    def lowest(self) -> Tensor:
        """Rank of the worst completion of each row, `(B,)`."""
        return self.ranks.masked_fill(~self.rank_mask, -1).amax(dim=1)


def ranking_sums(scored: RankedBatch, max_places: int) -> dict[str, Sums]:
    """
    Returns a batch's figures as sums and weights: TRL's names for the best and the worst completion (the mean over
    those that tie), and a ranking's own.

    Args:
        scored ([`RankedBatch`]):
            The batch.
        max_places (`int`):
            Places that get a figure of their own, the same on every process.

    Returns:
        `dict[str, Sums]`
    """
    weights, mask, ranks, rewards = scored.weights, scored.rank_mask, scored.ranks, scored.rewards
    lowest, (best, worst) = scored.lowest, best_and_worst(ranks, mask)
    chosen, rejected = mean_over(rewards, best), mean_over(rewards, worst)
    margins = chosen - rejected
    best_reward = rewards.masked_fill(~best, -torch.inf).amax(dim=1)
    other_reward = rewards.masked_fill(~mask | best, -torch.inf).amax(dim=1)
    logps = scored.logps.detach()
    by_example = {
        "loss": scored.losses,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/order_probabilities": torch.exp(-scored.order_losses),
        "logps/chosen": mean_over(logps, best),
        "logps/rejected": mean_over(logps, worst),
    }
    if scored.ref_logps is not None:
        drift = logps - scored.ref_logps
        by_example |= {"logps/chosen_drift": mean_over(drift, best), "logps/rejected_drift": mean_over(drift, worst)}
    if scored.policy.aux_loss is not None:
        by_example["aux_loss"] = scored.policy.aux_loss.expand_as(weights)
    comparing = {
        "rewards/margins": margins,
        # Margins between neighbouring ranks add up to that between the best and the worst
        "rewards/margins_neighbors": margins / lowest.clamp(min=1),
        "rewards/top1_accuracies": best_reward > other_reward,
        "rewards/kendall_tau": kendall_tau_b(rewards, ranks, mask),
    }
    # Rows of one completion, or all tied, only occur in prediction, and compare nothing
    compares = weights * (lowest > 0)
    token_mask = to_groups(scored.policy.mask.float(), scored.groups)  # (B, K, T - 1)
    lengths = token_mask.sum(dim=2)
    sums = means(by_example, weights) | means(comparing, compares)
    sums |= comparison_sums(pairs_of_ranking(rewards, lengths, ranks, mask, compares))
    sums["rewards/length_correlation"] = within_group_correlation_sums(rewards, lengths, mask, weights)
    for place in range(max_places):
        there = mask & (ranks == place)
        sums |= means({f"rewards/rank_{place + 1}": rewards}, there * weights[:, None])

    policy, tokens = scored.policy, token_mask * weights[:, None, None]
    everywhere = {"entropy": policy.entropy}
    if scored.ref_token_logps is not None:
        everywhere["kl_per_token"] = token_kl(policy.token_logps, scored.ref_token_logps)
    at_best = {"logits/chosen": policy.mean_logits, "mean_token_accuracy": policy.is_top1.float()}
    at_worst = {"logits/rejected": policy.mean_logits}
    for values, which in ((everywhere, mask), (at_best, best), (at_worst, worst)):
        in_groups = {name: to_groups(value, scored.groups) for name, value in values.items()}
        sums |= means(in_groups, tokens * which[:, :, None])
    return sums


def ranking_distributions(scored: RankedBatch) -> dict[str, Tensor]:
    """The values `(B,)` whose distribution an evaluation shows; NaN where a row compares nothing."""
    chosen, rejected = best_and_worst_means(scored.rewards, scored.ranks, scored.rank_mask)
    margins = (chosen - rejected).masked_fill(scored.lowest == 0, torch.nan)
    return {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": margins}
