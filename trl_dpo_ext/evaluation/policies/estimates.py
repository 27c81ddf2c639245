"""Estimates over prompts, each with several samples, and their standard errors clustered by prompt."""

import math
from typing import Any, NamedTuple

import numpy as np


__all__ = ["Difference", "Estimate", "mean_over_prompts", "paired_difference", "t_distribution", "wins_by_prompt"]


class Estimate(NamedTuple):
    """A mean over prompts and its standard error, which is NaN with fewer than two prompts."""

    mean: float
    se: float


class Difference(NamedTuple):
    """A mean difference on the same prompts, its standard error, and its 95 % interval."""

    mean: float
    se: float
    low: float
    high: float


def mean_over_prompts(values: np.ndarray) -> Estimate:
    r"""
    Mean over prompts of the means over their samples.

    $$ \bar v = \frac{1}{P} \sum_{i=1}^{P} \bar v_i, \qquad
       SE = \sqrt{\frac{1}{P (P - 1)} \sum_{i=1}^{P} (\bar v_i - \bar v)^2} $$

    Samples of the same prompt are not independent, so the standard error is that of the means of prompts.

    Args:
        values (`numpy.ndarray` of shape `(P,)` or `(P, m)`):
            Value of each sample of each prompt. NaN is left out, and so is a prompt with NaN only.

    Returns:
        [`Estimate`]

    Example:

    ```python
    >>> import numpy as np
    >>> from trl_dpo_ext.evaluation.policies.estimates import mean_over_prompts

    >>> mean_over_prompts(np.array([[0.0, 2.0], [3.0, 3.0]]))
    Estimate(mean=2.0, se=1.0)

    ```
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 2:
        counts = (~np.isnan(values)).sum(axis=1)
        values = np.nansum(values, axis=1)[counts > 0] / counts[counts > 0]
    num = len(values)
    if num == 0:
        return Estimate(math.nan, math.nan)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / num**0.5) if num > 1 else math.nan)


def wins_by_prompt(rewards: np.ndarray, others: np.ndarray) -> np.ndarray:
    """
    Share of the pairs of a sample and another policy's sample in which the first has the larger reward.

    Args:
        rewards (`numpy.ndarray` of shape `(P, m)`):
            Rewards of the samples of each prompt.
        others (`numpy.ndarray` of shape `(P, k)`):
            Rewards of the other policy's samples of the same prompts.

    Returns:
        `numpy.ndarray` of shape `(P,)`: share of each prompt. Equal rewards count half.
    """
    ordered = np.sort(others, axis=1)
    below = [np.searchsorted(row, of_prompt, "left") for row, of_prompt in zip(ordered, rewards, strict=True)]
    up_to = [np.searchsorted(row, of_prompt, "right") for row, of_prompt in zip(ordered, rewards, strict=True)]
    shares: np.ndarray = (np.array(below) + np.array(up_to)).mean(axis=1) / (2 * others.shape[1])
    return shares


def t_distribution() -> Any:
    """
    Returns scipy's t distribution.

    Raises:
        ImportError: Without scipy.
    """
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError('Intervals need scipy: pip install "trl-dpo-ext[evaluate]"') from error
    return t


def paired_difference(values: np.ndarray, others: np.ndarray) -> Difference:
    """
    Mean difference of two policies on the same prompts, with the 95 % interval of the t distribution.

    Args:
        values (`numpy.ndarray` of shape `(P, m)`):
            Values of the samples of each prompt.
        others (`numpy.ndarray` of shape `(P, k)`):
            Those of the other policy.

    Returns:
        [`Difference`]: `values` minus `others`.

    Raises:
        ImportError: Without scipy.
    """
    mean, se = mean_over_prompts(values.mean(axis=1) - others.mean(axis=1))
    reach = float(t_distribution().ppf(0.975, len(values) - 1)) * se if len(values) > 1 else math.nan
    return Difference(mean, se, mean - reach, mean + reach)
