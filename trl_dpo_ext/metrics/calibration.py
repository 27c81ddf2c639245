"""Calibration of the preference probabilities that rewards imply."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .sums import Sums, sum_dtype


__all__ = ["BINS", "Reliability", "calibration_error", "calibration_sums", "reliability"]

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """
    How often the answer with the larger reward is the preferred one, by the probability that the rewards imply.

    Args:
        edges (`list[float]` of length `bins + 1`): Limits of the bins, from 0.5 to 1.
        counts (`list[float]` of length `bins`): Sum of the weights of the pairs.
        confidence (`list[float]` of length `bins`): Mean implied probability; NaN without pairs.
        accuracy (`list[float]` of length `bins`): Share of pairs in the right order; NaN without pairs.
    """

    edges: list[float]
    counts: list[float]
    confidence: list[float]
    accuracy: list[float]


def calibration_sums(margins: Tensor, weights: Tensor, bins: int = BINS) -> Sums:
    r"""
    Expected calibration error of the Bradley-Terry probabilities that rewards imply (Eq. 1), as sums.

    $$ ECE = \sum_b \frac{n_b}{n} \left| \mathrm{acc}_b - \mathrm{conf}_b \right| $$

    over bins of equal width of the confidence \\( \max(p, 1 - p) \\), \\( p = \sigma(r_w - r_l) \\)
    ([Guo et al., 2017](https://huggingface.co/papers/1706.04599)). \\( \mathrm{acc}_b \\) is the share of pairs whose
    preferred answer has the larger reward, and \\( \mathrm{conf}_b \\) the mean confidence. A pair with equal rewards
    counts as half right, at confidence 1/2.

    Args:
        margins (`torch.Tensor`):
            Reward of the preferred answer minus that of the other.
        weights (`torch.Tensor`):
            Weight of each pair, of the same shape.
        bins (`int`, *optional*, defaults to 10):
            Number of bins.

    Returns:
        [`~trl_dpo_ext.metrics.sums.Sums`] of `(3 * bins,)`: for each bin the weighted number of pairs, the weighted
        sum of their confidence, and the weighted number of pairs in the right order.
    """
    margins, weights = margins.detach().flatten().to(sum_dtype(margins)), weights.flatten()
    confidence = torch.sigmoid(margins.abs())
    right = (torch.sign(margins) + 1) / 2
    which = ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)
    in_bin = torch.stack([torch.ones_like(confidence), confidence, right]) * weights  # (3, N)
    sums = in_bin.new_zeros(3, bins).index_add_(1, which, in_bin)
    return Sums(sums.flatten(), partial(_finish, bins=bins))


def calibration_error(margins: Tensor, bins: int = BINS) -> float:
    """
    Expected calibration error of pairs of equal weight. See [`calibration_sums`].

    Args:
        margins (`torch.Tensor` of shape `(N,)`):
            Reward of the preferred answer minus that of the other.
        bins (`int`, *optional*, defaults to 10):
            Number of bins.

    Returns:
        `float`: in [0, 1]; NaN without a pair.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.metrics.calibration import calibration_error

    >>> round(calibration_error(torch.tensor([9.0, 9.0, 9.0, -9.0])), 4)  # confident in all four, right in three
    0.2499

    ```
    """
    return calibration_sums(margins, torch.ones_like(margins), bins).result()


def reliability(sums: Sums) -> Reliability:
    """The points of a reliability diagram, computed from the sums of [`calibration_sums`]."""
    counts, confidence, right = sums.values.view(3, -1).tolist()
    bins = len(counts)
    return Reliability(
        edges=[0.5 + place / (2 * bins) for place in range(bins + 1)],
        counts=counts,
        confidence=[total / count if count else math.nan for total, count in zip(confidence, counts, strict=True)],
        accuracy=[total / count if count else math.nan for total, count in zip(right, counts, strict=True)],
    )


def _finish(sums: list[float], bins: int) -> float | None:
    counts, confidence, right = sums[:bins], sums[bins : 2 * bins], sums[2 * bins :]
    if not sum(counts):
        return None
    return sum(abs(r - c) for r, c in zip(right, confidence, strict=True)) / sum(counts)
