"""Checks of lengths in tokens: truncation, quantiles, and whether longer answers are preferred."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from trl_dpo_ext.data.doctor.findings import NOTE, WARNING, Check, Finding
from trl_dpo_ext.data.doctor.prepared_row import PreparedRow
from trl_dpo_ext.metrics.correlation import within_group_correlation_sums


__all__ = [
    "AnswersTruncated",
    "EndsTruncated",
    "FullPrompts",
    "LengthBias",
    "Lengths",
    "PromptsTruncated",
    "Quantiles",
    "fitting_length",
    "wilson_interval",
]

_ROUND = 64  # recommended lengths are multiples of it
_BIASED = 0.6  # share of longer preferred answers from which there is a warning
_SIGMAS = 1.959964  # of a 95 % interval


class PromptsTruncated(Check):
    name = "prompts-truncated"
    severity = WARNING
    meaning = "The prompt is truncated."
    fix = "Raise `max_length` (see the lengths), or `max_prompt_length` if answers are short enough."

    def found(self, row: PreparedRow) -> str | None:
        return f"{len(row.prompt_ids)} tokens" if row.prompt_truncated else None


class AnswersTruncated(Check):
    name = "answers-truncated"
    severity = WARNING
    meaning = "An answer is truncated."
    fix = "Raise `max_length` (see the lengths), or drop such rows."

    def found(self, row: PreparedRow) -> str | None:
        longest = max(map(len, row.completion_ids))
        return f"{len(row.prompt_ids)} + {longest} tokens" if row.completions_truncated else None


class EndsTruncated(Check):
    name = "preferred-answer-loses-eos"
    severity = WARNING
    meaning = "The preferred answer is truncated and loses its EOS token, so the policy does not learn to stop."
    fix = "Raise `max_length` (see the lengths), or drop such rows."

    def found(self, row: PreparedRow) -> str | None:
        return f"{len(row.prompt_ids)} + {len(row.completion_ids[0])} tokens" if row.best_end_truncated else None


class FullPrompts(Check):
    name = "prompt-fills-max-length"
    severity = WARNING
    meaning = "The prompt alone has `max_length` tokens or more."
    fix = "Raise `max_length` (see the lengths), or shorten these prompts yourself."

    def __init__(self, max_length: int | None) -> None:
        super().__init__()
        self.max_length = max_length

    def found(self, row: PreparedRow) -> str | None:
        fills = self.max_length is not None and len(row.prompt_ids) >= self.max_length
        return f"{len(row.prompt_ids)} tokens" if fills else None


@dataclass(frozen=True)
class Quantiles:
    """
    Quantiles of lengths in tokens, before truncation and with special tokens.

    Args:
        median (`int`): Median.
        p95 (`int`): 95 % quantile.
        max (`int`): Maximum.
    """

    median: int
    p95: int
    max: int

    @classmethod
    def of(cls, lengths: list[int]) -> "Quantiles":
        """Computes the quantiles. Each is one of the lengths."""
        median, p95 = (int(np.quantile(lengths, q, method="inverted_cdf")) for q in (0.5, 0.95))
        return cls(median, p95, max(lengths))


class Lengths:
    """Lengths of prompts, of the best and the other answers, and of prompts with their longest answer."""

    def __init__(self) -> None:
        self.prompts: list[int] = []
        self.preferred: list[int] = []
        self.others: list[int] = []
        self.whole: list[int] = []

    def add(self, row: PreparedRow) -> None:
        """Adds a row."""
        sizes = [len(ids) for ids in row.completion_ids]
        self.prompts.append(len(row.prompt_ids))
        self.preferred += [size for size, rank in zip(sizes, row.ranks, strict=True) if rank == 0]
        self.others += [size for size, rank in zip(sizes, row.ranks, strict=True) if rank > 0]
        self.whole.append(len(row.prompt_ids) + max(sizes))

    def quantiles(self) -> dict[str, Quantiles]:
        """Returns the quantiles by kind of length, without kinds that no row has."""
        measured = {
            "prompt": self.prompts,
            "preferred answer": self.preferred,
            "dispreferred answer": self.others,
            "prompt with longest answer": self.whole,
        }
        return {name: Quantiles.of(lengths) for name, lengths in measured.items() if lengths}


def fitting_length(whole: list[int], share: float) -> int | None:
    """
    Returns the smallest multiple of 64 that fits this share of the rows without truncation.

    Args:
        whole (`list[int]`): Number of tokens of each row's prompt with its longest answer.
        share (`float`): Share of the rows, in (0, 1].

    Returns:
        `int` or `None`: `None` without rows.

    Example:
    ```python
    >>> from trl_dpo_ext.data.doctor.length_checks import fitting_length

    >>> fitting_length([100] * 99 + [2000], share=0.99)
    128

    ```
    """
    if not whole:
        return None
    return math.ceil(np.quantile(whole, share, method="inverted_cdf") / _ROUND) * _ROUND


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    r"""
    Computes the 95 % interval of a binomial probability ([Wilson,
    1927](https://doi.org/10.1080/01621459.1927.10502953)).

    $$ \frac{\hat p + z^2/2n \pm z \sqrt{\hat p (1 - \hat p)/n + z^2/4n^2}}{1 + z^2/n} $$

    Args:
        successes (`int`): Number of successes.
        trials (`int`): Number of trials, 1 or more.

    Returns:
        `tuple[float, float]`: Lower and upper end, in [0, 1].

    Example:
    ```python
    >>> from trl_dpo_ext.data.doctor.length_checks import wilson_interval

    >>> [round(end, 3) for end in wilson_interval(55, 100)]
    [0.452, 0.644]

    ```
    """
    p, z2 = successes / trials, _SIGMAS**2
    centre = p + z2 / (2 * trials)
    half = _SIGMAS * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    return max(0.0, (centre - half) / (1 + z2 / trials)), min(1.0, (centre + half) / (1 + z2 / trials))


class LengthBias(Check):
    """Compares the lengths of the best and the worst answer of every row, in tokens."""

    name = "length-bias"
    severity = NOTE
    meaning = "Length predicts which answer is preferred."
    fix = "Watch the lengths of samples in training. `loss_type` 'sigmoid_norm' and `ld_alpha` reduce the effect."

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[tuple[int, int]] = []

    def found(self, row: PreparedRow) -> str | None:
        # Of worst answers that tie, the first counts
        worst = row.ranks.index(row.ranks[-1])
        self.lengths.append((len(row.completion_ids[0]), len(row.completion_ids[worst])))
        return None

    @property
    def longer_preferred(self) -> tuple[float, float, float] | None:
        """Share of rows whose longer answer is preferred, and its interval. Rows of equal lengths do not count."""
        longer, unequal = self._counts()
        return (longer / unequal, *wilson_interval(longer, unequal)) if unequal else None

    @property
    def correlation(self) -> float | None:
        """Correlation of length and preference within rows, from -1 to 1."""
        if not self._counts()[1]:
            return None
        lengths = torch.tensor(self.lengths)
        preferred = torch.tensor([1.0, 0.0]).expand(len(lengths), 2)
        there = torch.ones_like(lengths, dtype=torch.bool)
        return within_group_correlation_sums(lengths, preferred, there, torch.ones(len(lengths))).result()

    def findings(self) -> list[Finding]:
        longer, unequal = self._counts()
        if not unequal:
            return []
        low, high = wilson_interval(longer, unequal)
        if low <= 0.5 <= high:
            return []
        which, count = ("longer", longer) if low > 0.5 else ("shorter", unequal - longer)
        severity = WARNING if low > _BIASED or high < 1 - _BIASED else NOTE
        meaning = (
            f"The {which} answer is the preferred one in {count / unequal:.0%} of the {unequal:,} rows whose answers "
            "differ in length."
        )
        return [Finding(self.name, severity, meaning, self.fix, count)]

    def _counts(self) -> tuple[int, int]:
        return sum(a > b for a, b in self.lengths), sum(a != b for a, b in self.lengths)
