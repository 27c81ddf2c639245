"""Correlation of rewards with another quantity of completions, such as their length."""

import math

import torch
from torch import Tensor

from .sums import Sums, sum_dtype


__all__ = ["within_group_correlation_sums"]


def within_group_correlation_sums(x: Tensor, y: Tensor, mask: Tensor, weights: Tensor) -> Sums:
    r"""
    Correlation of two quantities of completions within prompts, as sums.

    $$ \rho = \frac{\sum_b \sum_k (x_{bk} - \bar x_b)(y_{bk} - \bar y_b)}
                  {\sqrt{\sum (x_{bk} - \bar x_b)^2 \sum (y_{bk} - \bar y_b)^2}} $$

    This is Pearson's correlation of the deviations from each prompt's mean, because implicit rewards can only be
    compared within a prompt. It does not depend on which completion is preferred.

    Args:
        x (`torch.Tensor` of shape `(B, K)`):
            One quantity.
        y (`torch.Tensor` of shape `(B, K)`):
            The other.
        mask (`torch.Tensor` of shape `(B, K)`, bool):
            `True` where there is a completion.
        weights (`torch.Tensor` of shape `(B,)`):
            Weight of each prompt.

    Returns:
        [`~trl_dpo_ext.metrics.sums.Sums`]: in [-1, 1]; no value if one of the two is constant.
    """
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)

    def deviations(values: Tensor) -> Tensor:
        values = values.detach().to(sum_dtype(values)) * mask
        return (values - values.sum(dim=1, keepdim=True) / count) * mask

    x, y = deviations(x), deviations(y)
    products = torch.stack([x * y, x * x, y * y])  # (3, B, K)
    return Sums((products * weights[:, None]).sum(dim=(1, 2)), _finish)


def _finish(sums: list[float]) -> float | None:
    xy, xx, yy = sums
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else None
