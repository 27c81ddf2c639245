"""Rewards and ranks of users, in lists or arrays, as checked tensors."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from trl_dpo_ext.metrics.comparisons import Comparisons, pairs_of_ranking
from trl_dpo_ext.metrics.rankings import best_and_worst_means, ordered_pairs


__all__ = ["RewardedRankings", "as_list", "read_rankings"]

_ABSENT = -1


@dataclass(frozen=True)
class RewardedRankings:
    """
    Rankings with a reward for every completion.

    Args:
        rewards (`torch.Tensor` of shape `(B, K)`): Rewards; 0 for padding.
        ranks (`torch.Tensor` of shape `(B, K)`): The smallest is the best; equal for ties, infinite if unranked.
        mask (`torch.Tensor` of shape `(B, K)`, bool): `True` where there is a completion.
    """

    rewards: Tensor
    ranks: Tensor
    mask: Tensor

    @property
    def compares(self) -> Tensor:
        """`True` for rows with two different ranks, `(B,)`."""
        return ordered_pairs(self.ranks, self.mask).any(dim=2).any(dim=1)

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows with two different ranks, which metrics count, and of the others, which they leave out."""
        compared = int(self.compares.sum())
        return {"num_rows": compared, "num_left_out": len(self.mask) - compared}

    @property
    def margins(self) -> Tensor:
        """Best minus worst reward of the rows that count, `(N,)`; the mean of completions that tie."""
        best, worst = best_and_worst_means(self.rewards, self.ranks, self.mask)
        return (best - worst)[self.compares]

    def pairs(self, rows: Tensor | None = None) -> Comparisons:
        """Pairs of different rank of the rows in a mask `(B,)`, by default of all. Every row has the same weight."""
        weights = self.compares if rows is None else self.compares & rows
        no_lengths = torch.zeros_like(self.rewards)
        return pairs_of_ranking(self.rewards, no_lengths, self.ranks, self.mask, weights.to(self.rewards.dtype))


def read_rankings(rewards: Iterable[Any], ranks: Iterable[Any] | None = None) -> RewardedRankings:
    """
    Checks rewards and ranks, and pads rows to the same number of completions.

    Args:
        rewards (list of lists, or array of shape `(n, K)`):
            Reward of every completion of each prompt.
        ranks (list of lists, or array of shape `(n, K)`, *optional*):
            Rank of every completion: whole numbers, the smallest is the best, ties have equal ranks, and `None` is
            below every rank. Padding has rank -1 and reward NaN, as `predict` returns it. By default, completions are
            in order, best first.

    Returns:
        [`RewardedRankings`] in float64.

    Raises:
        ValueError: If a row is malformed. The message names the first one.
    """
    given = _rows(rewards, "rewards")
    ranked = [list(range(len(row))) for row in given] if ranks is None else _rows(ranks, "ranks")
    if len(given) != len(ranked):
        raise ValueError(f"There are {len(given)} rows of rewards and {len(ranked)} of ranks: pass one for each row.")
    if not given:
        raise ValueError("There are no rows to compare: pass the rewards of at least one prompt.")
    for index, (row, places) in enumerate(zip(given, ranked, strict=True)):
        if len(row) != len(places) or not row:
            raise ValueError(
                f"Row {index} has {len(row)} rewards and {len(places)} ranks: pass one of each for every completion."
            )
    reward, rank = _padded(given, math.nan, missing=math.nan), _padded(ranked, _ABSENT, missing=math.inf)
    absent = rank == _ABSENT
    _refuse(reward, rank, ~((rank >= _ABSENT) & (rank == rank.round())), "ranks must be whole numbers, 0 for the best")
    _refuse(reward, rank, ~absent & ~reward.isfinite(), "the reward must be finite")
    _refuse(reward, rank, absent & ~reward.isnan(), "rank -1 is padding, whose reward must be NaN")
    return RewardedRankings(reward.masked_fill(absent, 0), rank, ~absent)


def as_list(values: Iterable[Any]) -> list[Any]:
    """An array, a tensor or any other iterable as a list of Python numbers."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _rows(values: Iterable[Any], name: str) -> list[list[Any]]:
    rows = as_list(values)
    for index, row in enumerate(rows):
        if isinstance(row, str) or not isinstance(row, Iterable):
            raise ValueError(
                f"Row {index} of the {name} is {row!r}: pass a list for every prompt, such as [chosen, rejected]."
            )
    return [as_list(row) for row in rows]


def _padded(rows: Sequence[list[Any]], absent: float, missing: float) -> Tensor:
    columns = zip_longest(*rows, fillvalue=absent)
    try:
        numbers = [[missing if value is None else float(value) for value in column] for column in columns]
    except (TypeError, ValueError) as error:
        raise ValueError(f"Rewards and ranks must be numbers, one for each completion: {error}.") from error
    return torch.tensor(numbers, dtype=torch.float64).T  # (B, K)


def _refuse(rewards: Tensor, ranks: Tensor, wrong: Tensor, rule: str) -> None:
    if wrong.any():
        row, place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"Row {row}, completion {place}: reward {rewards[row, place]:g}, rank {ranks[row, place]:g}; {rule}."
        )
