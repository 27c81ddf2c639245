"""Metrics of how well rewards order the completions of a prompt."""

import torch
from torch import Tensor


__all__ = ["best_and_worst", "best_and_worst_means", "kendall_tau_b", "mean_over", "ordered_pairs"]


def ordered_pairs(ranks: Tensor, rank_mask: Tensor) -> Tensor:
    """`True` at `(b, i, j)` where completion i ranks above j, `(B, K, K)`. Same arguments as [`kendall_tau_b`]."""
    both = rank_mask[:, :, None] & rank_mask[:, None, :]
    return both & (ranks[:, :, None] < ranks[:, None, :])


def best_and_worst(ranks: Tensor, rank_mask: Tensor) -> tuple[Tensor, Tensor]:
    """
    `True` at the best completions of each row, and at the worst (several if they tie), `(B, K)` each.

    Same arguments as [`kendall_tau_b`].
    """
    above = ordered_pairs(ranks, rank_mask)
    return rank_mask & ~above.any(dim=1), rank_mask & ~above.any(dim=2)


def mean_over(values: Tensor, where: Tensor) -> Tensor:
    """Mean of each row of values `(B, K)` where `where` is `True`, `(B,)`; 0 for a row without any."""
    return (values * where).sum(dim=1) / where.sum(dim=1).clamp(min=1)


def best_and_worst_means(values: Tensor, ranks: Tensor, rank_mask: Tensor) -> tuple[Tensor, Tensor]:
    """
    Mean of values over the best completions of each row, and over the worst.

    Args:
        values (`torch.Tensor` of shape `(B, K)`): Values; finite for padding, too.
        ranks (`torch.Tensor` of shape `(B, K)`): The smallest is the best, equal for ties.
        rank_mask (`torch.Tensor` of shape `(B, K)`, bool): `True` where there is a completion.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(B,)`; 0 for a row without completions.
    """
    best, worst = best_and_worst(ranks, rank_mask)
    return mean_over(values, best), mean_over(values, worst)


def kendall_tau_b(rewards: Tensor, ranks: Tensor, rank_mask: Tensor) -> Tensor:
    r"""
    Kendall's rank correlation between rewards and the observed ranking, corrected for ties.

    $$ \tau_b = \frac{C - D}{\sqrt{(n_0 - n_1)(n_0 - n_2)}} $$

    for C concordant and D discordant pairs out of \\( n_0 \\), of which \\( n_1 \\) tie in rank and \\( n_2 \\) in
    reward ([Kendall, 1945](https://doi.org/10.1093/biomet/33.3.239)). 0 if all rewards tie.

    Args:
        rewards (`torch.Tensor` of shape `(B, K)`): Rewards.
        ranks (`torch.Tensor` of shape `(B, K)`, int): 0 for the best.
        rank_mask (`torch.Tensor` of shape `(B, K)`, bool): `True` where there is a completion.

    Returns:
        `torch.Tensor` of shape `(B,)`
    """
    above = ordered_pairs(ranks, rank_mask)
    sign = torch.sign(rewards[:, :, None] - rewards[:, None, :])  # (B, K, K)
    balance = (above * sign).sum(dim=(1, 2))
    ranked_apart = above.sum(dim=(1, 2))
    both = rank_mask[:, :, None] & rank_mask[:, None, :]
    rewarded_apart = (both & (sign > 0)).sum(dim=(1, 2))
    scale = torch.sqrt((ranked_apart * rewarded_apart).to(rewards.dtype))
    return torch.where(scale > 0, balance / scale.clamp(min=1), torch.zeros_like(scale))
