"""
Metrics of rewards and preferences, as plain functions and by `evaluate.load`; samples of a policy, their rewards, KL
and best of N; judges, win rates and agreement.
"""

from typing import TYPE_CHECKING

from trl_dpo_ext.lazy_names import lazy_names


__all__ = [
    "ChatJudge",
    "ClassifierReward",
    "Comparison",
    "FunctionJudge",
    "JudgedComparisons",
    "Judgement",
    "PolicyEvaluation",
    "PolicyEvaluator",
    "Sample",
    "Sampler",
    "VerdictFile",
    "agreement_table",
    "ask_judge",
    "best_of_n",
    "best_of_n_kl",
    "best_of_n_kl_bound",
    "judge_by_reward",
    "kendall_tau",
    "known_metrics",
    "load_judge_prompt",
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
        "trl_dpo_ext.evaluation.judging.agreement": ("agreement_table",),
        "trl_dpo_ext.evaluation.judging.asking": ("ask_judge",),
        "trl_dpo_ext.evaluation.judging.chat_judge": ("ChatJudge",),
        "trl_dpo_ext.evaluation.judging.comparisons": ("Comparison",),
        "trl_dpo_ext.evaluation.judging.judge_prompts": ("load_judge_prompt",),
        "trl_dpo_ext.evaluation.judging.judgements": ("Judgement",),
        "trl_dpo_ext.evaluation.judging.judges": ("FunctionJudge",),
        "trl_dpo_ext.evaluation.judging.reward_verdicts": ("judge_by_reward",),
        "trl_dpo_ext.evaluation.judging.verdicts": ("VerdictFile",),
        "trl_dpo_ext.evaluation.judging.win_rates": ("JudgedComparisons",),
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
    from trl_dpo_ext.evaluation.judging.agreement import agreement_table
    from trl_dpo_ext.evaluation.judging.asking import ask_judge
    from trl_dpo_ext.evaluation.judging.chat_judge import ChatJudge
    from trl_dpo_ext.evaluation.judging.comparisons import Comparison
    from trl_dpo_ext.evaluation.judging.judge_prompts import load_judge_prompt
    from trl_dpo_ext.evaluation.judging.judgements import Judgement
    from trl_dpo_ext.evaluation.judging.judges import FunctionJudge
    from trl_dpo_ext.evaluation.judging.reward_verdicts import judge_by_reward
    from trl_dpo_ext.evaluation.judging.verdicts import VerdictFile
    from trl_dpo_ext.evaluation.judging.win_rates import JudgedComparisons
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
