"""Win rates of a policy over a baseline, from verdicts, with standard errors clustered by prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trl_dpo_ext.evaluation.judging.comparisons import Comparison
from trl_dpo_ext.evaluation.judging.judgements import FAILED, TIE, UNPARSABLE, score_of
from trl_dpo_ext.evaluation.judging.length_control import length_controlled
from trl_dpo_ext.evaluation.judging.verdicts import Verdict
from trl_dpo_ext.evaluation.policies.estimates import Difference, Estimate, mean_over_prompts, t_distribution


__all__ = ["JudgedComparisons", "paired_win_rates"]


@dataclass(frozen=True)
class JudgedComparisons:
    r"""
    Comparisons of a policy with a baseline, and the verdicts on them.

    A verdict scores 1 if the policy's completion is preferred, 1/2 for a tie and 0 if the baseline's is. The score of
    a prompt is the mean over its verdicts (both orders, several samples, several people), and the win rate is the
    mean over prompts:

    $$ \hat w = \frac{1}{P} \sum_{i=1}^{P} w_i, \qquad w_i = \frac{1}{n_i} \sum_{j=1}^{n_i} w_{ij} $$

    Verdicts that are unparsable or failed have no score. They are counted, and the bounds are the win rate if all of
    them were losses, and if all were wins.

    Args:
        comparisons (`Sequence[Comparison]`):
            Comparisons.
        verdicts (`Sequence[Sequence[Verdict]]`):
            Verdicts on each of them.

    Example:

    ```python
    >>> from trl_dpo_ext.evaluation.judging.asking import new_verdict
    >>> from trl_dpo_ext.evaluation.judging.comparisons import Comparison
    >>> from trl_dpo_ext.evaluation.judging.judges import Answer
    >>> from trl_dpo_ext.evaluation.judging.verdicts import RaterIdentity
    >>> from trl_dpo_ext.evaluation.judging.win_rates import JudgedComparisons

    >>> sums = Comparison("2 + 2?", "4", "5"), Comparison("2 + 3?", "6", "5")
    >>> ann = RaterIdentity("ann", "human")
    >>> verdicts = [
    ...     [new_verdict(one, ann, order, Answer("Preferred: A")) for order in orders]
    ...     for one, orders in zip(sums, (["ab"], ["ab", "ba"]))
    ... ]
    >>> summary = JudgedComparisons(sums, verdicts).summary()
    >>> summary["win_rate"], summary["consistent_wins"], summary["flips"]
    (0.75, 1, 1)

    ```
    """

    comparisons: Sequence[Comparison]
    verdicts: Sequence[Sequence[Verdict]]

    def by_prompt(self) -> dict[str, float]:
        """Returns the score of each prompt that has one, by the hash of the prompt."""
        return {prompt: sum(own) / len(own) for prompt, own in self._scores().items() if own}

    def summary(self) -> dict[str, Any]:
        """
        Returns the estimates and counts.

        Returns:
            `dict`:

            - `win_rate`, its standard error `win_rate_se`, its 95 % interval of the t distribution `win_rate_low` and
              `win_rate_high`, and `win_rate_bounds`.
            - `num_items` comparisons, `num_prompts` different prompts, and `num_verdicts`.
            - By comparison: `consistent_wins`, `consistent_losses` and `ties`, in which all verdicts say so, `flips`,
              in which they differ, and `incomplete`, which have an unparsable, failed or no verdict.
            - By verdict: `unparsable` and `failed`.
            - `first_position_rate`: Share of the completions that were shown first among those that were preferred,
              with its standard error and 95 % interval. It is 1/2 for a judge without a preference for a position.
            - `length_controlled_win_rate`, see
              [`~trl_dpo_ext.evaluation.judging.length_control.length_controlled`].
            - `mean_length_policy` and `mean_length_baseline`, in characters.
        """
        rate = mean_over_prompts(np.array(list(self.by_prompt().values())))
        low, high = _interval(rate, len(self.by_prompt()))
        all_verdicts = [verdict for own in self.verdicts for verdict in own]
        return {
            "win_rate": rate.mean,
            "win_rate_se": rate.se,
            "win_rate_low": low,
            "win_rate_high": high,
            "win_rate_bounds": [self._bound(0.0), self._bound(1.0)],
            "num_items": len(self.comparisons),
            "num_prompts": len({comparison.prompt_hash for comparison in self.comparisons}),
            "num_verdicts": len(all_verdicts),
            **self._outcomes(),
            "unparsable": sum(verdict.verdict == UNPARSABLE for verdict in all_verdicts),
            "failed": sum(verdict.verdict == FAILED for verdict in all_verdicts),
            **self._first_position(),
            **self._length_controlled(),
            "mean_length_policy": float(np.mean([len(one.a) for one in self.comparisons])),
            "mean_length_baseline": float(np.mean([len(one.b) for one in self.comparisons])),
        }

    def _scores(self, without: float | None = None) -> dict[str, list[float]]:
        """Scores of the verdicts of each prompt, with `without` for a verdict that has none."""
        found: dict[str, list[float]] = {}
        for comparison, own in zip(self.comparisons, self.verdicts, strict=True):
            of_prompt = found.setdefault(comparison.prompt_hash, [])
            for verdict in own:
                score = score_of(verdict.verdict)
                score = without if score is None else score
                if score is not None:
                    of_prompt.append(score)
        return found

    def _bound(self, without: float) -> float:
        means = [sum(own) / len(own) for own in self._scores(without).values() if own]
        return sum(means) / len(means) if means else math.nan

    def _outcomes(self) -> dict[str, int]:
        counts = dict.fromkeys(("consistent_wins", "consistent_losses", "ties", "flips", "incomplete"), 0)
        names = {"a": "consistent_wins", "b": "consistent_losses", TIE: "ties"}
        for own in self.verdicts:
            different = {verdict.verdict for verdict in own}
            if not different or different & {UNPARSABLE, FAILED}:
                counts["incomplete"] += 1
            else:
                counts["flips" if len(different) > 1 else names[different.pop()]] += 1
        return counts

    def _first_position(self) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for comparison, own in zip(self.comparisons, self.verdicts, strict=True):
            for verdict in own:
                if (first := verdict.prefers_first) is not None:
                    found.setdefault(comparison.prompt_hash, []).append(float(first))
        rate = mean_over_prompts(np.array([sum(own) / len(own) for own in found.values()]))
        low, high = _interval(rate, len(found))
        return {
            "first_position_rate": rate.mean,
            "first_position_rate_se": rate.se,
            "first_position_rate_low": low,
            "first_position_rate_high": high,
        }

    def _length_controlled(self) -> dict[str, Any]:
        judged, scores = [], []
        for comparison, own in zip(self.comparisons, self.verdicts, strict=True):
            known = [score for verdict in own if (score := score_of(verdict.verdict)) is not None]
            if known:
                judged.append(comparison)
                scores.append(sum(known) / len(known))
        return length_controlled(
            np.array(scores),
            np.array([len(one.a) - len(one.b) for one in judged], dtype=float),
            [one.prompt_hash for one in judged],
        )


def paired_win_rates(first: JudgedComparisons, second: JudgedComparisons) -> Difference:
    """
    Difference of the win rates of two policies over the same baseline, on the prompts that both have a score of.

    Args:
        first ([`JudgedComparisons`]):
            Of one policy.
        second ([`JudgedComparisons`]):
            Of the other.

    Returns:
        [`~trl_dpo_ext.evaluation.policies.estimates.Difference`]: `first` minus `second`, with the 95 % interval of
        the t distribution of the differences by prompt.
    """
    own, others = first.by_prompt(), second.by_prompt()
    common = [prompt for prompt in own if prompt in others]
    estimate = mean_over_prompts(np.array([own[prompt] - others[prompt] for prompt in common]))
    return Difference(*estimate, *_interval(estimate, len(common), least=-1.0))


def _interval(estimate: Estimate, num: int, least: float = 0.0) -> tuple[float, float]:
    """95 % interval of the t distribution, within `least` and 1."""
    if num < 2:
        return math.nan, math.nan
    reach = float(t_distribution().ppf(0.975, num - 1)) * estimate.se
    return max(least, estimate.mean - reach), min(1.0, estimate.mean + reach)
