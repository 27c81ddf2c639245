"""Figures of ranked completions, each as a sum over rows and the weight to divide by."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trl_dpo_ext.logps import to_groups
from trl_dpo_ext.shared_prompt.groups import PromptGroups
from trl_dpo_ext.trainers.scored_batch import ScoredBatch


__all__ = ["RankedBatch", "kendall_tau_b", "pair_accuracy", "ranking_sums"]


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


def _ordered_pairs(ranks: Tensor, rank_mask: Tensor) -> Tensor:
    """`True` at `(b, i, j)` where i ranks above j, `(B, K, K)`."""
    both = rank_mask[:, :, None] & rank_mask[:, None, :]
    return both & (ranks[:, :, None] < ranks[:, None, :])


def pair_accuracy(rewards: Tensor, ranks: Tensor, rank_mask: Tensor) -> Tensor:
    """
    Share of the pairs of different rank whose better completion has the strictly larger reward. 0 without such a pair.

    Args:
        rewards (`torch.Tensor` of shape `(B, K)`): Rewards.
        ranks (`torch.Tensor` of shape `(B, K)`, int): 0 for the best.
        rank_mask (`torch.Tensor` of shape `(B, K)`, bool): `True` where there is a completion.

    Returns:
        `torch.Tensor` of shape `(B,)`
    """
    above = _ordered_pairs(ranks, rank_mask)
    right = above & (rewards[:, :, None] > rewards[:, None, :])
    return right.sum(dim=(1, 2)) / above.sum(dim=(1, 2)).clamp(min=1)


def kendall_tau_b(rewards: Tensor, ranks: Tensor, rank_mask: Tensor) -> Tensor:
    r"""
    Kendall's rank correlation between rewards and the observed ranking, corrected for ties.

    $$ \\tau_b = \\frac{C - D}{\\sqrt{(n_0 - n_1)(n_0 - n_2)}} $$

    over C concordant and D discordant of the \\( n_0 \\) pairs, \\( n_1 \\) and \\( n_2 \\) of which tie in rank and
    in reward ([Kendall, 1945](https://doi.org/10.1093/biomet/33.3.239)). 0 where all rewards tie.

    Args:
        rewards (`torch.Tensor` of shape `(B, K)`): Rewards.
        ranks (`torch.Tensor` of shape `(B, K)`, int): 0 for the best.
        rank_mask (`torch.Tensor` of shape `(B, K)`, bool): `True` where there is a completion.

    Returns:
        `torch.Tensor` of shape `(B,)`
    """
    above = _ordered_pairs(ranks, rank_mask)
    sign = torch.sign(rewards[:, :, None] - rewards[:, None, :])  # (B, K, K)
    balance = (above * sign).sum(dim=(1, 2))
    ranked_apart = above.sum(dim=(1, 2))
    both = rank_mask[:, :, None] & rank_mask[:, None, :]
    rewarded_apart = (both & (sign > 0)).sum(dim=(1, 2))
    scale = torch.sqrt((ranked_apart * rewarded_apart).to(rewards.dtype))
    return torch.where(scale > 0, balance / scale.clamp(min=1), torch.zeros_like(scale))


def ranking_sums(scored: RankedBatch, max_places: int) -> dict[str, tuple[Tensor, Tensor]]:
    """
    Returns a batch's figures as sums and weights: TRL's names for the best and the worst completion (the mean over
    those that tie), and a ranking's own.

    Args:
        scored ([`RankedBatch`]):
            The batch.
        max_places (`int`):
            Places that get a figure of their own, the same on every process.

    Returns:
        `dict[str, tuple[torch.Tensor, torch.Tensor]]`
    """
    weights, mask, ranks, rewards = scored.weights, scored.rank_mask, scored.ranks, scored.rewards
    lowest = ranks.masked_fill(~mask, -1).amax(dim=1)  # (B,)
    best, worst = mask & (ranks == 0), mask & (ranks == lowest[:, None])

    def over(values: Tensor, where: Tensor) -> Tensor:
        return (values * where).sum(dim=1) / where.sum(dim=1).clamp(min=1)  # (B,)

    chosen, rejected = over(rewards, best), over(rewards, worst)
    best_reward = rewards.masked_fill(~best, -torch.inf).amax(dim=1)
    other_reward = rewards.masked_fill(~mask | best, -torch.inf).amax(dim=1)
    by_example = {
        "loss": scored.losses,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/order_probabilities": torch.exp(-scored.order_losses),
        "logps/chosen": over(scored.logps.detach(), best),
        "logps/rejected": over(scored.logps.detach(), worst),
    }
    if scored.policy.aux_loss is not None:
        by_example["aux_loss"] = scored.policy.aux_loss.expand_as(weights)
    comparisons = {
        "rewards/accuracies": pair_accuracy(rewards, ranks, mask),
        "rewards/margins": chosen - rejected,
        # Margins between neighbouring ranks add up to that between the best and the worst
        "rewards/margins_neighbors": (chosen - rejected) / lowest.clamp(min=1),
        "rewards/top1_accuracies": best_reward > other_reward,
        "rewards/kendall_tau": kendall_tau_b(rewards, ranks, mask),
    }
    sums = {name: ((values * weights).sum(), weights.sum()) for name, values in by_example.items()}
    # Rows of one completion, or all tied, only occur in prediction, and compare nothing
    comparing = weights * (lowest > 0)
    sums |= {name: ((values * comparing).sum(), comparing.sum()) for name, values in comparisons.items()}
    for place in range(max_places):
        there = mask & (ranks == place) & (weights[:, None] > 0)
        sums[f"rewards/rank_{place + 1}"] = ((rewards * there).sum(), there.sum())

    policy = scored.policy
    token_mask = to_groups(policy.mask.float(), scored.groups) * weights[:, None, None]  # (B, K, T - 1)
    by_token = {
        "entropy": (policy.entropy, mask),
        "logits/chosen": (policy.mean_logits, best),
        "logits/rejected": (policy.mean_logits, worst),
        "mean_token_accuracy": (policy.is_top1.float(), best),
    }
    for name, (values, which) in by_token.items():
        where = token_mask * which[:, :, None]
        sums[name] = ((to_groups(values, scored.groups) * where).sum(), where.sum())
    return sums
