"""Win rate at equal lengths, by a regression of the verdicts on the difference of lengths."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np


__all__ = ["length_controlled"]

_LEAST_COMPARISONS = 30
_LARGEST_COEFFICIENT = 10


def length_controlled(scores: np.ndarray, differences: np.ndarray, prompts: Sequence[str]) -> dict[str, Any]:
    r"""
    Win rate that a logistic regression predicts for completions of equal length.

    The regression is a binomial generalized linear model of the scores, with \\( \Delta \\) the difference of lengths
    and \\( s \\) its standard deviation:

    $$ \operatorname{logit} E[w] = \alpha + \beta \tanh(\Delta / s), \qquad \hat w_{LC} = \sigma(\hat\alpha) $$

    The standard error is that of \\( \hat\alpha \\), clustered by prompt, by the delta method. The interval is that of
    \\( \hat\alpha \\), transformed. The idea is that of length-controlled AlpacaEval
    ([Dubois et al., 2024](https://huggingface.co/papers/2404.04475)). The number is another, because their model also
    has a difficulty of each instruction, estimated on other models, and no intercept.

    Args:
        scores (`numpy.ndarray` of shape `(I,)`):
            Score of each comparison, from 0 to 1.
        differences (`numpy.ndarray` of shape `(I,)`):
            Length of the policy's completion minus that of the baseline's.
        prompts (`Sequence[str]`):
            Prompt of each comparison.

    Returns:
        `dict`: `length_controlled_win_rate`, `..._se`, `..._low` and `..._high`, which are NaN where the regression
        cannot tell, and `length_controlled_note`, which says why, or `None`.
    """
    name = "length_controlled_win_rate"
    nothing = {name: math.nan, f"{name}_se": math.nan, f"{name}_low": math.nan, f"{name}_high": math.nan}
    clusters = np.unique(prompts, return_inverse=True)[1] if len(prompts) else np.array([])
    if len(np.unique(clusters)) < _LEAST_COMPARISONS:
        return {**nothing, "length_controlled_note": f"fewer than {_LEAST_COMPARISONS} prompts"}
    if differences.std() == 0:
        return {**nothing, "length_controlled_note": "the difference of lengths is always the same"}
    try:
        from statsmodels.genmod.families import Binomial
        from statsmodels.genmod.generalized_linear_model import GLM
    except ImportError:
        return {**nothing, "length_controlled_note": 'needs statsmodels: pip install "trl-dpo-ext[evaluate]"'}
    design = np.column_stack([np.ones_like(scores), np.tanh(differences / differences.std())])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of perfect separation, which the coefficients show
            fit = GLM(scores, design, family=Binomial()).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    except (ValueError, np.linalg.LinAlgError) as error:
        return {**nothing, "length_controlled_note": f"the regression failed: {error}"}
    if not np.all(np.isfinite(fit.params)) or np.abs(fit.params).max() > _LARGEST_COEFFICIENT:
        return {**nothing, "length_controlled_note": "the lengths, or the policy, decide all comparisons"}
    alpha, se = float(fit.params[0]), float(fit.bse[0])
    rate = _sigmoid(alpha)
    return {
        name: rate,
        f"{name}_se": rate * (1 - rate) * se,
        f"{name}_low": _sigmoid(alpha - 1.96 * se),
        f"{name}_high": _sigmoid(alpha + 1.96 * se),
        "length_controlled_note": None,
    }


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
