"""What the `evaluate` modules of this package say of themselves."""

from typing import Any

import datasets
import evaluate


__all__ = ["REWARDS_AND_RANKS", "metric_info"]

REWARDS_AND_RANKS = {
    "predictions": datasets.List(datasets.Value("float64")),
    # With `int64`, ranks such as 0.5 would be rounded without an error
    "references": datasets.List(datasets.Value("float64")),
}


def metric_info(description: str, inputs: str, citation: str, features: dict[str, Any] = REWARDS_AND_RANKS) -> Any:
    """
    Returns the `evaluate.MetricInfo` of a module.

    Args:
        description (`str`): What it computes.
        inputs (`str`): Its arguments.
        citation (`str`): BibTeX.
        features (`dict[str, Any]`, *optional*): Types of its columns; by default those of rewards and ranks by prompt.
    """
    return evaluate.MetricInfo(
        description=description,
        inputs_description=inputs,
        citation=citation,
        features=datasets.Features(features),
    )
