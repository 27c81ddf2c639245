"""
Metrics of rewards and preferences, as plain functions and by `evaluate.load`; samples of a policy, their rewards, KL
and best of N.
"""

from typing import TYPE_CHECKING

from trl_dpo_ext.lazy_names import lazy_names


__all__ = [
    "ClassifierReward",
    "PolicyEvaluation",
    "PolicyEvaluator",
    "Sample",
    "Sampler",
    "best_of_n",
    "best_of_n_kl",
    "best_of_n_kl_bound",
    "kendall_tau",
    "known_metrics",
    "load_metric",
    "open_prompts",
    "preference_accuracy",
    "preference_calibration",
    "reward_margin",
    "sample_file",
    "win_rate",
    "win_rate_of_outcomes",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "trl_dpo_ext.evaluation.best_of_n_estimates": (
            "best_of_n",
            "best_of_n_kl",
            "best_of_n_kl_bound",
        ),
        "trl_dpo_ext.evaluation.metric_loading": (
            "known_metrics",
            "load_metric",
        ),
        "trl_dpo_ext.evaluation.policies.policy_evaluation": ("PolicyEvaluation",),
        "trl_dpo_ext.evaluation.policies.policy_evaluator": ("PolicyEvaluator",),
        "trl_dpo_ext.evaluation.preference_metrics": (
            "kendall_tau",
            "preference_accuracy",
            "preference_calibration",
            "reward_margin",
            "win_rate",
            "win_rate_of_outcomes",
        ),
        "trl_dpo_ext.evaluation.rewards.classifier_reward": ("ClassifierReward",),
        "trl_dpo_ext.evaluation.samples.sample_file": (
            "open_prompts",
            "sample_file",
        ),
        "trl_dpo_ext.evaluation.samples.sampler": (
            "Sample",
            "Sampler",
        ),
    },
)

if TYPE_CHECKING:
    from trl_dpo_ext.evaluation.best_of_n_estimates import best_of_n, best_of_n_kl, best_of_n_kl_bound
    from trl_dpo_ext.evaluation.metric_loading import known_metrics, load_metric
    from trl_dpo_ext.evaluation.policies.policy_evaluation import PolicyEvaluation
    from trl_dpo_ext.evaluation.policies.policy_evaluator import PolicyEvaluator
    from trl_dpo_ext.evaluation.preference_metrics import (
        kendall_tau,
        preference_accuracy,
        preference_calibration,
        reward_margin,
        win_rate,
        win_rate_of_outcomes,
    )
    from trl_dpo_ext.evaluation.rewards.classifier_reward import ClassifierReward
    from trl_dpo_ext.evaluation.samples.sample_file import open_prompts, sample_file
    from trl_dpo_ext.evaluation.samples.sampler import Sample, Sampler
