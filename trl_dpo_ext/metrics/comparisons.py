"""Metrics of pairs of answers whose preference is known."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .calibration import calibration_sums
from .rankings import ordered_pairs
from .sums import Sums, means


__all__ = ["NEAR_0", "Comparisons", "comparison_sums", "pairs_of_ranking"]

# A pair with a smaller gradient weight hardly contributes to training
NEAR_0 = 0.05


@dataclass(frozen=True)
class Comparisons:
    """
    Pairs of answers to the same prompt. The three tensors have the same shape.

    Args:
        margins (`torch.Tensor`): Reward of the preferred answer minus that of the other.
        longer (`torch.Tensor`): Tokens of the preferred answer minus those of the other.
        weights (`torch.Tensor`): Weight of each pair; 0 for padding.
    """

    margins: Tensor
    longer: Tensor
    weights: Tensor


def comparison_sums(pairs: Comparisons) -> dict[str, Sums]:
    r"""
    The metrics of pairs as sums, by their names in the logs.

    - `rewards/accuracies`: share of margins above 0. Ties count as wrong, as in TRL.
    - `rewards/accuracies_from_length`: accuracy of the rule "the longer answer is preferred". Ties count as half.
    - `rewards/gradient_weight`: mean of \\( \sigma(r_l - r_w) \\), the weight of a pair in the gradient of Eq. 7,
      and `rewards/gradient_weight_near_0`: share of pairs whose weight is below 0.05.
    - `rewards/calibration_error`: see [`~trl_dpo_ext.metrics.calibration.calibration_sums`].
    """
    margins, weights = pairs.margins, pairs.weights
    gradient_weight = torch.sigmoid(-margins)
    values = {
        "rewards/accuracies": margins > 0,
        "rewards/accuracies_from_length": (torch.sign(pairs.longer) + 1) / 2,
        "rewards/gradient_weight": gradient_weight,
        "rewards/gradient_weight_near_0": gradient_weight < NEAR_0,
    }
    return means(values, weights) | {"rewards/calibration_error": calibration_sums(margins, weights)}


def pairs_of_ranking(rewards: Tensor, lengths: Tensor, ranks: Tensor, mask: Tensor, weights: Tensor) -> Comparisons:
    """
    All pairs of completions with different ranks. The pairs of a row share its weight, so that every row counts once.

    Args:
        rewards (`torch.Tensor` of shape `(B, K)`): Rewards.
        lengths (`torch.Tensor` of shape `(B, K)`): Tokens.
        ranks (`torch.Tensor` of shape `(B, K)`, int): 0 for the best, equal for ties.
        mask (`torch.Tensor` of shape `(B, K)`, bool): `True` where there is a completion.
        weights (`torch.Tensor` of shape `(B,)`): Weight of each row.

    Returns:
        [`Comparisons`] of shape `(B, K, K)`
    """
    above = ordered_pairs(ranks, mask)
    share = weights[:, None, None] * above / above.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    margins, longer = (values[:, :, None] - values[:, None, :] for values in (rewards, lengths))
    return Comparisons(margins, longer, share)
