"""Figures as sums: what adds up over batches and processes is kept until the figure itself is asked for."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


__all__ = ["Sums", "mean_of_sums", "means", "results", "sum_dtype"]


@dataclass(frozen=True)
class Sums:
    """
    What a figure needs of its examples.

    A mean of batch means is another number when batches differ in size, and a correlation within each batch says
    nothing of all; sums over examples can be added, whatever the batches and the processes, and finished once.

    Args:
        values (`torch.Tensor` of shape `(S,)`):
            Sums over examples, without gradient.
        finish (`Callable`):
            Makes the figure of them; `None` where they hold no example, or too few.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.metrics.sums import means

    >>> three = means({"loss": torch.tensor([1.0, 2.0, 3.0])}, torch.ones(3))["loss"]
    >>> one = means({"loss": torch.tensor([1.0])}, torch.ones(1))["loss"]
    >>> (three + one).result()
    1.75

    ```
    """

    values: Tensor
    finish: Callable[[list[float]], float | None]

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.values + other.values, self.finish)

    def result(self) -> float:
        """The figure of these sums alone; NaN where there is none."""
        figure = self.finish(self.values.tolist())
        return math.nan if figure is None else figure


def sum_dtype(values: Tensor) -> torch.dtype:
    """Dtype of sums: float64, since a log window may hold millions of tokens; float32 on MPS, which has no other."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def mean_of_sums(sums: list[float]) -> float | None:
    """Finishes a mean: `(2,)`, a sum of weighted values and the sum of the weights."""
    total, weight = sums
    return total / weight if weight else None


def means(values: Mapping[str, Tensor], weights: Tensor) -> dict[str, Sums]:
    """
    Weighted means of several figures over the same examples (or tokens).

    Args:
        values (`Mapping` of `torch.Tensor`):
            For each name its values, all of the shape of `weights`.
        weights (`torch.Tensor`):
            Weight of each; 0 for one that does not exist.

    Returns:
        `dict[str, Sums]`
    """
    dtype = sum_dtype(weights)
    weight = weights.sum(dtype=dtype)
    return {
        name: Sums(torch.stack([(value.detach() * weights).sum(dtype=dtype), weight]), mean_of_sums)
        for name, value in values.items()
    }


def results(sums: Mapping[str, Sums]) -> dict[str, float]:
    """The figures of several sums; those that no example has are left out."""
    figures = {name: entry.finish(entry.values.tolist()) for name, entry in sums.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}
