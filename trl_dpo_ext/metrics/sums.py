"""Metrics as sums, which can be added over batches and processes before the metric is computed from them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


__all__ = ["Sums", "mean_of_sums", "means", "results", "sum_dtype"]


@dataclass(frozen=True)
class Sums:
    """
    Sums over examples from which a metric is computed.

    The mean of batch means differs from the mean over examples when batches differ in size, and correlations of
    batches cannot be averaged either. Sums can be added over batches and processes, and the metric is computed once.

    Args:
        values (`torch.Tensor` of shape `(S,)`):
            Sums over examples, without gradient.
        finish (`Callable`):
            Computes the metric from them; `None` if there are no examples, or too few.

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
        """The metric of these sums; NaN if there are too few examples."""
        metric = self.finish(self.values.tolist())
        return math.nan if metric is None else metric


def sum_dtype(values: Tensor) -> torch.dtype:
    """Dtype of sums: float64, as a log window may have millions of tokens; float32 on MPS, which has no float64."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def mean_of_sums(sums: list[float]) -> float | None:
    """A mean from two sums: of the weighted values, and of the weights."""
    total, weight = sums
    return total / weight if weight else None


def means(values: Mapping[str, Tensor], weights: Tensor) -> dict[str, Sums]:
    """
    Weighted means of several metrics over the same examples (or tokens), as sums.

    Args:
        values (`Mapping` of `torch.Tensor`):
            Values of each metric, by name, all with the shape of `weights`.
        weights (`torch.Tensor`):
            Weight of each value; 0 for padding.

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
    """Computes the metrics of several sums. Metrics with too few examples are left out."""
    metrics = {name: entry.finish(entry.values.tolist()) for name, entry in sums.items()}
    return {name: metric for name, metric in metrics.items() if metric is not None}
