"""The metrics of `evaluation/modules` as plain functions of lists or arrays."""

import math
from collections.abc import Hashable, Iterable
from statistics import NormalDist
from typing import Any, SupportsFloat

import torch

from trl_dpo_ext.evaluation.rewarded_rankings import as_list, read_rankings
from trl_dpo_ext.metrics.calibration import BINS, calibration_sums, reliability
from trl_dpo_ext.metrics.comparisons import comparison_sums
from trl_dpo_ext.metrics.rankings import kendall_tau_b
from trl_dpo_ext.metrics.sums import means


__all__ = [
    "kendall_tau",
    "preference_accuracy",
    "preference_calibration",
    "reward_margin",
    "win_rate",
    "win_rate_of_outcomes",
]

# Values that the bootstrap draws at once, 8 bytes each
_DRAWN_AT_ONCE = 10_000_000


def preference_accuracy(
    rewards: Iterable[Any], ranks: Iterable[Any] | None = None, *, subsets: Iterable[Hashable] | None = None
) -> dict[str, float]:
    """
    Share of pairs of completions in which the preferred one has the strictly larger reward.

    A pair is two completions of a prompt with different ranks. Every prompt counts once, regardless of its number of
    pairs. The trainers log this as `rewards/accuracies`.

    Args:
        rewards (list of lists, or array of shape `(n, K)`):
            Reward of every completion of each prompt, such as `predictions` of a trainer's `predict`.
        ranks (list of lists, or array of shape `(n, K)`, *optional*):
            Rank of every completion, such as `label_ids` of a trainer's `predict`: the smallest is the best, ties have
            equal ranks, and `None` is below every rank. Padding has rank -1 and reward NaN. By default, completions
            are in order, best first.
        subsets (list of length `n`, *optional*):
            Subset of each prompt.

    Returns:
        `dict`: `preference_accuracy`; `ties`, the share of pairs with equal rewards, which count as wrong;
        `num_rows`, the number of prompts that count; `num_left_out`, the number of prompts without two different
        ranks. With `subsets` also `preference_accuracy/NAME` of each subset, and `mean_over_subsets`, in which every
        subset counts once. NaN if no prompt counts.

    Raises:
        ValueError: If a row is malformed.

    Example:
    ```python
    >>> from trl_dpo_ext.evaluation.preference_metrics import preference_accuracy

    >>> preference_accuracy([[0.4, 0.1], [0.2, 0.2], [-0.1, 0.3]])
    {'preference_accuracy': 0.3333333333333333, 'ties': 0.3333333333333333, 'num_rows': 3, 'num_left_out': 0}

    ```
    """
    given = read_rankings(rewards, ranks)
    pairs = given.pairs()
    metrics = {
        "preference_accuracy": comparison_sums(pairs)["rewards/accuracies"].result(),
        "ties": means({"ties": pairs.margins == 0}, pairs.weights)["ties"].result(),
        **given.counts,
    }
    if subsets is not None:
        subset_of = as_list(subsets)
        _check_subsets(subset_of, len(given.rewards))
        accuracies = {}
        for name in dict.fromkeys(subset_of):
            rows = torch.tensor([subset == name for subset in subset_of])
            accuracies[name] = comparison_sums(given.pairs(rows))["rewards/accuracies"].result()
        metrics["mean_over_subsets"] = sum(accuracies.values()) / len(accuracies)
        metrics |= {f"preference_accuracy/{name}": accuracy for name, accuracy in accuracies.items()}
    return metrics


def kendall_tau(rewards: Iterable[Any], ranks: Iterable[Any] | None = None) -> dict[str, float]:
    """
    Mean over prompts of Kendall's tau-b between the rewards of completions and their observed ranking.

    See [`~trl_dpo_ext.metrics.rankings.kendall_tau_b`]. The number of completions may differ between prompts.
    [`RankingDPOTrainer`] logs this as `rewards/kendall_tau`.

    Args:
        rewards (list of lists, or array of shape `(n, K)`):
            Same as in [`preference_accuracy`].
        ranks (list of lists, or array of shape `(n, K)`, *optional*):
            Same as in [`preference_accuracy`].

    Returns:
        `dict`: `kendall_tau`, in [-1, 1], where a prompt whose rewards are all equal counts as 0, and NaN if no prompt
        counts; `num_rows`, the number of prompts that count; `num_left_out`, the number of prompts without two
        different ranks.

    Raises:
        ValueError: If a row is malformed.

    Example:
    ```python
    >>> from trl_dpo_ext.evaluation.preference_metrics import kendall_tau

    >>> kendall_tau([[3.0, 2.0, 1.0], [0.1, 0.5]], [[0, 1, 2], [1, 0]])
    {'kendall_tau': 1.0, 'num_rows': 2, 'num_left_out': 0}

    ```
    """
    given = read_rankings(rewards, ranks)
    taus = kendall_tau_b(given.rewards, given.ranks, given.mask)
    mean = means({"kendall_tau": taus}, given.compares.to(taus.dtype))["kendall_tau"]
    return {"kendall_tau": mean.result(), **given.counts}


def preference_calibration(
    rewards: Iterable[Any], ranks: Iterable[Any] | None = None, *, bins: int = BINS
) -> dict[str, Any]:
    """
    Expected calibration error of the Bradley-Terry probabilities that rewards imply, with its reliability diagram.

    See [`~trl_dpo_ext.metrics.calibration.calibration_sums`]. The trainers log this as `rewards/calibration_error`.

    Args:
        rewards (list of lists, or array of shape `(n, K)`):
            Same as in [`preference_accuracy`]. Implicit rewards include beta and are in nats.
        ranks (list of lists, or array of shape `(n, K)`, *optional*):
            Same as in [`preference_accuracy`].
        bins (`int`, *optional*, defaults to 10):
            Number of bins of equal width for the probability of the more probable order, from 0.5 to 1.

    Returns:
        `dict`: `calibration_error`, in [0, 1], NaN if no prompt counts; `edges`, `counts`, `confidence` and `accuracy`
        of [`~trl_dpo_ext.metrics.calibration.Reliability`], where the pairs of a prompt have a total weight of 1;
        `num_rows`, the number of prompts that count; `num_left_out`, the number of prompts without two different
        ranks.

    Raises:
        ValueError: If a row is malformed, or `bins` is below 1.

    Example:
    ```python
    >>> from trl_dpo_ext.evaluation.preference_metrics import preference_calibration

    >>> metrics = preference_calibration([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.0, 9.0]], bins=2)
    >>> round(metrics["calibration_error"], 4), metrics["counts"], metrics["accuracy"]
    (0.2499, [0.0, 4.0], [nan, 0.75])

    ```
    """
    if bins < 1:
        raise ValueError(f"`bins={bins}` must be at least 1.")
    given = read_rankings(rewards, ranks)
    pairs = given.pairs()
    sums = calibration_sums(pairs.margins, pairs.weights, bins)
    points = reliability(sums)
    return {
        "calibration_error": sums.result(),
        "edges": points.edges,
        "counts": points.counts,
        "confidence": points.confidence,
        "accuracy": points.accuracy,
        **given.counts,
    }


def reward_margin(
    rewards: Iterable[Any],
    ranks: Iterable[Any] | None = None,
    *,
    confidence_level: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> dict[str, float]:
    """
    Mean reward of the best completion minus that of the worst, with a bootstrap interval over prompts.

    If several completions are best or worst, their mean is used. The trainers log this as `rewards/margins`. The
    interval is the percentile bootstrap over prompts ([Efron, 1979](https://doi.org/10.1214/aos/1176344552)). It does
    not depend on the order of the prompts.

    Args:
        rewards (list of lists, or array of shape `(n, K)`):
            Same as in [`preference_accuracy`].
        ranks (list of lists, or array of shape `(n, K)`, *optional*):
            Same as in [`preference_accuracy`].
        confidence_level (`float`, *optional*, defaults to 0.95):
            Coverage of the interval, between 0 and 1.
        num_resamples (`int`, *optional*, defaults to 9999):
            Number of bootstrap samples.
        seed (`int`, *optional*, defaults to 0):
            Seed of the bootstrap.

    Returns:
        `dict`: `reward_margin`; `low` and `high`, NaN with fewer than two prompts; `num_rows`, the number of prompts
        that count; `num_left_out`, the number of prompts without two different ranks. NaN if no prompt counts.

    Raises:
        ValueError: If a row or an option is malformed.
        ImportError: Without scipy.

    Example:
    ```python
    >>> from trl_dpo_ext.evaluation.preference_metrics import reward_margin

    >>> reward_margin([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    {'reward_margin': 2.0, 'low': 1.0, 'high': 3.0, 'num_rows': 3, 'num_left_out': 0}

    ```
    """
    _check_confidence_level(confidence_level)
    if num_resamples < 1:
        raise ValueError(f"`num_resamples={num_resamples}` must be at least 1.")
    try:
        import numpy as np
        from scipy.stats import bootstrap
    except ImportError as error:
        raise ImportError('The interval needs scipy: pip install "trl-dpo-ext[evaluate]"') from error

    given = read_rankings(rewards, ranks)
    # Samples are drawn by index: sorted, they do not depend on the order of the prompts
    margins = given.margins.sort().values.numpy()
    low = high = math.nan
    if len(margins) > 1:
        interval = bootstrap(
            (margins,),
            np.mean,
            n_resamples=num_resamples,
            batch=max(1, _DRAWN_AT_ONCE // len(margins)),
            confidence_level=confidence_level,
            method="percentile",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    mean = float(margins.mean()) if len(margins) else math.nan
    return {"reward_margin": mean, "low": low, "high": high, **given.counts}


def win_rate(
    scores: Iterable[float], baseline_scores: Iterable[float], *, confidence_level: float = 0.95
) -> dict[str, float]:
    """
    Share of prompts to which a policy's answer scores higher than a baseline's.

    Args:
        scores (list or array of length `n`):
            Score of the policy's answer to each prompt, higher is better.
        baseline_scores (list or array of length `n`):
            Score of the baseline's answer to the same prompt.
        confidence_level (`float`, *optional*, defaults to 0.95):
            Coverage of the interval, between 0 and 1.

    Returns:
        `dict`: same as in [`win_rate_of_outcomes`]. Equal scores are ties.

    Raises:
        ValueError: If the lengths differ, a score is not a finite number, or there are no scores.

    Example:
    ```python
    >>> from trl_dpo_ext.evaluation.preference_metrics import win_rate

    >>> metrics = win_rate([0.9, 0.5, 0.8, 0.7], [0.1, 0.5, 0.9, 0.2])
    >>> metrics["win_rate"], metrics["wins"], metrics["ties"], metrics["losses"]
    (0.625, 2, 1, 1)

    ```
    """
    ours, theirs = as_list(scores), as_list(baseline_scores)
    if len(ours) != len(theirs):
        raise ValueError(f"There are {len(ours)} scores and {len(theirs)} of the baseline: pass one for each prompt.")
    for index, pair in enumerate(zip(ours, theirs, strict=True)):
        if not all(isinstance(score, SupportsFloat) and math.isfinite(score) for score in pair):
            raise ValueError(f"Row {index} has the scores {pair[0]!r} and {pair[1]!r}: both must be finite numbers.")
    outcomes = ["win" if a > b else "loss" if a < b else "tie" for a, b in zip(ours, theirs, strict=True)]
    return win_rate_of_outcomes(outcomes, confidence_level=confidence_level)


def win_rate_of_outcomes(outcomes: Iterable[str], *, confidence_level: float = 0.95) -> dict[str, float]:
    r"""
    Share of comparisons won, ties counting half, with Wilson's interval.

    $$ \frac{\hat p + \frac{z^2}{2n} \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4 n^2}}}
            {1 + \frac{z^2}{n}} $$

    at \\( \hat p = (\mathrm{wins} + \mathrm{ties} / 2) / n \\)
    ([Wilson, 1927](https://doi.org/10.1080/01621459.1927.10502953)). The interval is derived for wins and losses,
    and with ties it is wider than necessary.

    Args:
        outcomes (list of length `n`):
            `"win"`, `"tie"` or `"loss"` for each prompt.
        confidence_level (`float`, *optional*, defaults to 0.95):
            Coverage of the interval, between 0 and 1.

    Returns:
        `dict`: `win_rate`; `low` and `high`, its interval; `wins`, `ties` and `losses`, counts.

    Raises:
        ValueError: If an outcome is not one of these, or there are no outcomes.

    Example:
    ```python
    >>> from trl_dpo_ext.evaluation.preference_metrics import win_rate_of_outcomes

    >>> metrics = win_rate_of_outcomes(["win"] * 61 + ["loss"] * 39)
    >>> metrics["win_rate"], round(metrics["low"], 3), round(metrics["high"], 3)
    (0.61, 0.512, 0.7)

    ```
    """
    _check_confidence_level(confidence_level)
    found = as_list(outcomes)
    if not found:
        raise ValueError("There are no outcomes: pass those of at least one prompt.")
    for index, outcome in enumerate(found):
        if outcome not in ("win", "tie", "loss"):
            raise ValueError(f'Row {index} has the outcome {outcome!r}: pass "win", "tie" or "loss".')
    num = len(found)
    wins, ties, losses = (found.count(outcome) for outcome in ("win", "tie", "loss"))
    rate = (wins + ties / 2) / num
    z = NormalDist().inv_cdf((1 + confidence_level) / 2)
    middle = rate + z * z / (2 * num)
    reach = z * math.sqrt(rate * (1 - rate) / num + z * z / (4 * num * num))
    low, high = ((middle + sign * reach) / (1 + z * z / num) for sign in (-1, 1))
    # Rounding errors may leave [0, 1]
    return {
        "win_rate": rate,
        "low": max(0.0, low),
        "high": min(1.0, high),
        "wins": wins,
        "ties": ties,
        "losses": losses,
    }


def _check_subsets(subset_of: list[Hashable], num_rows: int) -> None:
    if len(subset_of) != num_rows:
        raise ValueError(f"There are {num_rows} rows and {len(subset_of)} subsets: pass one for each row.")
    for index, subset in enumerate(subset_of):
        if subset is None:
            raise ValueError(f"Row {index} has no subset: pass a name for each row.")


def _check_confidence_level(confidence_level: float) -> None:
    if not 0 < confidence_level < 1:
        raise ValueError(f"`confidence_level={confidence_level}` must be between 0 and 1.")
