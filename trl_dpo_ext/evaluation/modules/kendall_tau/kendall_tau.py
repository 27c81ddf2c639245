"""Rank correlation of rewards with the observed ranking."""

import evaluate

from trl_dpo_ext.evaluation import preference_metrics
from trl_dpo_ext.evaluation.metric_info import metric_info


__all__ = ["KendallTau"]

_DESCRIPTION = """
Kendall's tau-b between the rewards of the completions of a prompt and their observed ranking, corrected for ties in
both. The result is the mean over prompts. The number of completions may differ between prompts.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`):
        Rewards of the completions of each prompt, such as `predictions` of a trainer's `predict`.
    references (`list` of `list` of `int`):
        Their ranks, such as `label_ids` of a trainer's `predict`: the smallest is the best, ties have equal ranks, and
        `None` is below every rank. Padding has rank -1 and reward NaN.

Returns:
    `dict`: `kendall_tau`, in [-1, 1], where a prompt whose rewards are all equal counts as 0, and NaN if no prompt
    counts; `num_rows`, the number of prompts that count; `num_left_out`, the number of prompts without two different
    ranks.

Examples:

    >>> from trl_dpo_ext.evaluation.metric_loading import load_metric
    >>> metric = load_metric("kendall_tau")
    >>> metric.compute(predictions=[[3.0, 2.0, 1.0], [0.1, 0.5]], references=[[0, 1, 2], [0, 1]])
    {'kendall_tau': 0.0, 'num_rows': 2, 'num_left_out': 0}
"""

_CITATION = """
@article{kendall1945treatment,
    title = {The Treatment of Ties in Ranking Problems},
    author = {Kendall, Maurice G.},
    journal = {Biometrika},
    volume = {33},
    number = {3},
    pages = {239--251},
    year = {1945}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class KendallTau(evaluate.Metric):
    def _info(self):
        return metric_info(_DESCRIPTION, _KWARGS_DESCRIPTION, _CITATION)

    def _compute(self, predictions, references):
        return preference_metrics.kendall_tau(predictions, references)
