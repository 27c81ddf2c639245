"""Agreement of raters: raw agreement and kappas, with bootstrap intervals over comparisons."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from trl_dpo_ext.evaluation.judging.judgements import TIE, VERDICTS, Judgement, score_of


__all__ = ["agreement_table"]

_NUM_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2**20

# Verdicts by item and rater
_Verdicts = dict[str, dict[str, str]]


def agreement_table(judgements: Sequence[Judgement], *, seed: int = 0) -> dict[str, Any]:
    r"""
    Agreement of people with each other, and of judges with people: Table 2 of
    [Rafailov et al. (2023)](https://huggingface.co/papers/2305.18290).

    Raw agreement of people is over all pairs of people who judged the same comparison. That of a judge with people is
    over all judgements of people on the comparisons that the judge judged: two for a comparison that two people
    judged. With ties dropped, only pairs of verdicts `"a"` or `"b"` count. With ties kept, a tie agrees with a tie.
    Unparsable and failed verdicts are in no pair.

    Kappa is agreement beyond chance. Of two raters, and of a judge with people, it is Cohen's
    ([Cohen, 1960](https://doi.org/10.1177/001316446002000104)). Of more than two people, it is Fleiss'
    ([Fleiss, 1971](https://doi.org/10.1037/h0031619)), with the share of agreeing pairs of each comparison, whatever
    its number of people:

    $$ \kappa = \frac{\bar P - \sum_v p_v^2}{1 - \sum_v p_v^2}, \qquad
       \bar P = \frac{1}{I} \sum_i \sum_v \frac{n_{iv} (n_{iv} - 1)}{n_i (n_i - 1)} $$

    Args:
        judgements (`Sequence[Judgement]`):
            One verdict of each rater on each comparison.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `dict`: `num_items`; `raters`, for each its `kind`, counts of its verdicts and `win_rate`, the share of `"a"`
        among its verdicts, ties counting half, with its 95 % interval; `human_human` and `judge_human` (by judge),
        each with `ties_dropped` and `ties_kept`: `agreement`, its 95 % percentile bootstrap interval over comparisons
        (`low` and `high`), `kappa`, `num_pairs` and `num_items`. Without a pair, `agreement` is NaN.

    Raises:
        ImportError: Without scipy and statsmodels.

    Example:

    ```python
    >>> from trl_dpo_ext.evaluation.judging.agreement import agreement_table
    >>> from trl_dpo_ext.evaluation.judging.judgements import Judgement

    >>> verdicts = {"ann": "aab", "bob": "abb", "gpt": "aaa"}
    >>> table = agreement_table(
    ...     [
    ...         Judgement(str(i), rater, verdict, "judge" if rater == "gpt" else "human")
    ...         for rater, row in verdicts.items()
    ...         for i, verdict in enumerate(row)
    ...     ]
    ... )
    >>> table["human_human"]["ties_dropped"]["agreement"], table["judge_human"]["gpt"]["ties_kept"]["num_pairs"]
    (0.6666666666666666, 6)

    ```
    """
    verdicts: _Verdicts = {}
    kinds: dict[str, str] = {}
    for one in judgements:
        verdicts.setdefault(one.item, {})[one.rater] = one.verdict
        kinds[one.rater] = one.kind
    people = [rater for rater, kind in kinds.items() if kind == "human"]
    judges = [rater for rater, kind in kinds.items() if kind == "judge"]
    return {
        "num_items": len(verdicts),
        "raters": {rater: _rater(verdicts, rater, kinds[rater], seed) for rater in kinds},
        "human_human": {name: _of_people(verdicts, people, kept, seed) for name, kept in _TIES.items()},
        "judge_human": {
            judge: {name: _with_people(verdicts, judge, people, kept, seed) for name, kept in _TIES.items()}
            for judge in judges
        },
    }


_TIES = {"ties_dropped": ("a", "b"), "ties_kept": ("a", "b", TIE)}


def _rater(verdicts: _Verdicts, rater: str, kind: str, seed: int) -> dict[str, Any]:
    own = [row[rater] for row in verdicts.values() if rater in row]
    counts = Counter(own)
    wins = np.array([score for verdict in own if (score := score_of(verdict)) is not None])
    rate, low, high = _ratio(wins, np.ones_like(wins), seed)
    return {
        "kind": kind,
        **{verdict: counts[verdict] for verdict in VERDICTS},
        "win_rate": rate,
        "win_rate_low": low,
        "win_rate_high": high,
    }


def _of_people(verdicts: _Verdicts, people: Sequence[str], kept: tuple[str, ...], seed: int) -> dict[str, Any]:
    # Sorted, so that the order of rows and raters does not change the kappa of two raters
    of_items = [[row[one] for one in sorted(people) if row.get(one) in kept] for row in verdicts.values()]
    pairs = [list(combinations(own, 2)) for own in of_items]
    if len(people) == 2:
        return _agreement(pairs, lambda: _cohens_kappa(pairs, kept), seed)
    return _agreement(pairs, lambda: _fleiss_kappa(of_items, kept), seed)


def _with_people(
    verdicts: _Verdicts, judge: str, people: Sequence[str], kept: tuple[str, ...], seed: int
) -> dict[str, Any]:
    pairs = [
        [(row[judge], row[one]) for one in people if row.get(one) in kept] if row.get(judge) in kept else []
        for row in verdicts.values()
    ]
    return _agreement(pairs, lambda: _cohens_kappa(pairs, kept), seed)


def _agreement(pairs: Sequence[Sequence[tuple[str, str]]], kappa: Callable[[], float], seed: int) -> dict[str, Any]:
    """Agreement of the pairs of verdicts of each item."""
    with_pairs = [own for own in pairs if own]
    agreeing = np.array([sum(one == other for one, other in own) for own in with_pairs], dtype=float)
    numbers = np.array([len(own) for own in with_pairs], dtype=float)
    rate, low, high = _ratio(agreeing, numbers, seed)
    return {
        "agreement": rate,
        "low": low,
        "high": high,
        "kappa": kappa() if with_pairs else math.nan,
        "num_pairs": int(numbers.sum()),
        "num_items": len(with_pairs),
    }


def _ratio(numerators: np.ndarray, denominators: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Ratio of sums over items, with its 95 % percentile bootstrap interval over items."""
    try:
        from scipy.stats import bootstrap
    except ImportError as error:
        raise ImportError('Agreement needs scipy: pip install "trl-dpo-ext[evaluate]"') from error
    num = len(numerators)
    if num == 0:
        return math.nan, math.nan, math.nan
    rate = float(numerators.sum() / denominators.sum())
    if num == 1:
        return rate, math.nan, math.nan
    interval = bootstrap(
        (numerators, denominators),
        lambda x, y, axis: x.sum(axis=axis) / y.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=_NUM_RESAMPLES,
        batch=max(1, _DRAWN_AT_ONCE // num),
        confidence_level=0.95,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return rate, float(interval.low), float(interval.high)


def _cohens_kappa(pairs: Sequence[Sequence[tuple[str, str]]], kept: tuple[str, ...]) -> float:
    try:
        from statsmodels.stats.inter_rater import cohens_kappa
    except ImportError as error:
        raise ImportError('Kappa needs statsmodels: pip install "trl-dpo-ext[evaluate]"') from error
    counts = np.zeros((len(kept), len(kept)))
    for own in pairs:
        for one, other in own:
            counts[kept.index(one), kept.index(other)] += 1
    if not _has_chance_disagreement(counts.sum(axis=0), counts.sum(axis=1)):
        return math.nan
    return float(cohens_kappa(counts, return_results=False))


def _fleiss_kappa(of_items: Sequence[Sequence[str]], kept: tuple[str, ...]) -> float:
    # statsmodels' needs the same number of raters for every item
    counts = np.array([[own.count(verdict) for verdict in kept] for own in of_items if len(own) > 1], dtype=float)
    numbers = counts.sum(axis=1)
    observed = ((counts * (counts - 1)).sum(axis=1) / (numbers * (numbers - 1))).mean()
    shares = counts.sum(axis=0) / counts.sum()
    if not _has_chance_disagreement(shares, shares):
        return math.nan
    expected = float((shares**2).sum())
    return float((observed - expected) / (1 - expected))


def _has_chance_disagreement(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two raters with these shares of verdicts may differ. Otherwise a kappa is 0 / 0."""
    return not ((first > 0).sum() == (second > 0).sum() == 1 and first.argmax() == second.argmax())
