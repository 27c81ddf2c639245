"""
Metrics of rewards and preferences, as plain functions and by `evaluate.load`.
"""

from typing import TYPE_CHECKING

from trl_dpo_ext.lazy_names import lazy_names


__all__ = [
    "kendall_tau",
    "known_metrics",
    "load_metric",
    "preference_accuracy",
    "preference_calibration",
    "reward_margin",
    "win_rate",
    "win_rate_of_outcomes",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "trl_dpo_ext.evaluation.metric_loading": (
            "known_metrics",
            "load_metric",
        ),
        "trl_dpo_ext.evaluation.preference_metrics": (
            "kendall_tau",
            "preference_accuracy",
            "preference_calibration",
            "reward_margin",
            "win_rate",
            "win_rate_of_outcomes",
        ),
    },
)

if TYPE_CHECKING:
    from trl_dpo_ext.evaluation.metric_loading import known_metrics, load_metric
    from trl_dpo_ext.evaluation.preference_metrics import (
        kendall_tau,
        preference_accuracy,
        preference_calibration,
        reward_margin,
        win_rate,
        win_rate_of_outcomes,
    )
