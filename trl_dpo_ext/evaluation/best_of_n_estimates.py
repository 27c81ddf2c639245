"""Best of N by a score: unbiased estimates from more than N samples, and the KL from the model that was sampled."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


__all__ = ["best_of_n", "best_of_n_kl", "best_of_n_kl_bound"]


def best_of_n(scores: Any, n: int, values: Any = None) -> Any:
    r"""
    Unbiased estimate of the value of the best of `n` samples, from `m >= n` samples of every prompt.

    $$ \sum_{i=n}^{m} \binom{i-1}{n-1} \binom{m}{n}^{-1} v_{(i)} $$

    with the samples in ascending order of their scores: the mean over all subsets of `n` samples of the value of the
    sample with the largest score ([Nakano et al., 2021](https://huggingface.co/papers/2112.09332), App. I). In a
    subset with several largest scores, the mean of their values counts. One pass of `m` samples serves every `n`.

    Args:
        scores (array, list of lists or `torch.Tensor` of shape `(P, m)`):
            Score of each sample of each prompt, by which the best is chosen.
        n (`int`):
            Number of samples to choose from, from 1 to `m`.
        values (array, list of lists or `torch.Tensor` of shape `(P, m)`, *optional*):
            Value of each sample to report, such as another reward. Default: the scores.

    Returns:
        `numpy.ndarray` of shape `(P,)`, float64: estimate of each prompt. A tensor if `scores` is one.

    Raises:
        ValueError: If the shapes differ, `n` is not from 1 to `m`, a score is NaN, or a value is not finite.

    Example:

    ```python
    >>> from trl_dpo_ext.evaluation import best_of_n

    >>> best_of_n([[1.0, 2.0, 4.0]], 2)  # subsets (1, 2), (1, 4), (2, 4)
    array([3.33333333])

    ```
    """
    ordered, reported = _as_float64(scores, "scores"), _as_float64(scores if values is None else values, "values")
    if ordered.dim() != 2 or ordered.shape != reported.shape:
        raise ValueError(
            f"`scores` has the shape {tuple(ordered.shape)} and `values` {tuple(reported.shape)}. Expected `(P, m)` "
            "for both."
        )
    if ordered.isnan().any() or not reported.isfinite().all():
        name, wrong = ("scores", ordered.isnan()) if ordered.isnan().any() else ("values", ~reported.isfinite())
        prompt, sample = wrong.nonzero()[0].tolist()
        raise ValueError(f"`{name}[{prompt}][{sample}]` is not finite. Leave such prompts out.")
    m = ordered.size(1)
    if not 1 <= n <= m:
        raise ValueError(f"`n={n}` must be from 1 to the number of samples, {m}.")
    ordered, order = ordered.sort(dim=1)
    reported = reported.gather(1, order)
    # Python's division of whole numbers is exact to the last bit, however large they are
    weights = torch.tensor([math.comb(i, n - 1) / math.comb(m, n) for i in range(m)], dtype=torch.double)
    weights = weights.to(ordered.device).expand_as(ordered)
    # Every sample of a tie has the mean weight of the tie
    is_new = torch.ones_like(ordered, dtype=torch.long)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    tie = is_new.cumsum(1) - 1  # (P, m)
    size = torch.zeros_like(ordered).scatter_add(1, tie, torch.ones_like(ordered))
    total = torch.zeros_like(ordered).scatter_add(1, tie, weights)
    estimates = (reported * (total / size.clamp(min=1)).gather(1, tie)).sum(dim=1)
    return _like(scores, estimates)


def best_of_n_kl(logps: Any, n: int) -> Any:
    r"""
    KL of best-of-n sampling from the model that is sampled, estimated from a completion that was chosen.

    $$ (1 - \epsilon)^n \left( \log n + (n - 1) \log(1 - \epsilon) - \frac{n - 1}{n} \right)
       + \left( 1 - (1 - \epsilon)^n \right) \log \frac{1 - (1 - \epsilon)^n}{\epsilon} $$

    with \\( \epsilon = \pi_{ref}(y|x) \\) of the chosen completion
    ([Beirami et al., 2024](https://huggingface.co/papers/2401.01879)). The mean over completions chosen from `n` is
    the estimate. It is at most [`best_of_n_kl_bound`], and far below where a model has few likely completions.
    `best_of_n(scores, n, values=best_of_n_kl(logps, n))` averages over all subsets of `n` samples.

    Args:
        logps (array, list or `torch.Tensor`):
            Log-probability of each chosen completion under the model that was sampled, in nats, at most 0.
        n (`int`):
            Number of samples that the best was chosen from.

    Returns:
        `numpy.ndarray` of the same shape, float64: estimates in nats. A tensor if `logps` is one.

    Raises:
        ValueError: If `n` is below 1, or a log-probability is above 0 or NaN.

    Example:

    ```python
    >>> import math
    >>> from trl_dpo_ext.evaluation import best_of_n_kl

    >>> best_of_n_kl([-40.0, math.log(0.5)], 4).round(4)
    array([0.6363, 0.4991])

    ```
    """
    _check_n(n)
    logp = _as_float64(logps, "logps")
    if not (logp <= 0).all():
        raise ValueError("`logps` has a value that is NaN or above 0, which is no log-probability.")
    epsilon = logp.exp()
    none_logp = n * (-epsilon).log1p()  # that none of n samples is this one; -inf if the model has only this one
    some = -none_logp.expm1()
    # An epsilon that is 0 in float64 leaves the limit
    log_ratio = torch.where(some > 0, some.log() - logp, math.log(n))
    rest = math.log(n) - (n - 1) / n + (n - 1) / n * none_logp.clamp(min=-1e300)
    return _like(logps, none_logp.exp() * rest + some * log_ratio)


def best_of_n_kl_bound(n: int) -> float:
    r"""
    Upper bound of the KL of best-of-n sampling, \\( \log n - (n - 1) / n \\), in nats.

    It is often quoted as the KL itself, which it is only where no completion is likely
    ([Beirami et al., 2024](https://huggingface.co/papers/2401.01879)).

    Raises:
        ValueError: If `n` is below 1.
    """
    _check_n(n)
    return math.log(n) - (n - 1) / n


def _check_n(n: int) -> None:
    if n < 1:
        raise ValueError(f"`n={n}` must be at least 1.")


def _as_float64(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().double()
    try:
        return torch.from_numpy(np.array(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` is not an array of numbers: {error}.") from error


def _like(given: Any, result: Tensor) -> Any:
    return result if isinstance(given, Tensor) else result.numpy()
