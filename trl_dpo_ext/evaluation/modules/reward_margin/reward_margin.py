"""Difference between the rewards of the best and the worst completion."""

import evaluate

from trl_dpo_ext.evaluation import preference_metrics
from trl_dpo_ext.evaluation.metric_info import metric_info


__all__ = ["RewardMargin"]

_DESCRIPTION = """
Mean over prompts of the reward of the best completion minus that of the worst (in a pair: chosen minus rejected). If
several completions tie, their mean is used. A percentile bootstrap interval over prompts is included.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`):
        Rewards of the completions of each prompt, such as `predictions` of a trainer's `predict`.
    references (`list` of `list` of `int`):
        Their ranks, such as `label_ids` of a trainer's `predict`: the smallest is the best, ties have equal ranks, and
        `None` is below every rank. Padding has rank -1 and reward NaN. The ranks
        of a pair, chosen first, are [0, 1].
    confidence_level (`float`, *optional*, defaults to 0.95):
        Coverage of the interval, between 0 and 1.
    num_resamples (`int`, *optional*, defaults to 9999):
        Number of bootstrap samples.
    seed (`int`, *optional*, defaults to 0):
        Seed of the bootstrap.

Returns:
    `dict`: `reward_margin`; `low` and `high`, NaN with fewer than two prompts; `num_rows`, the number of prompts that
    count; `num_left_out`, the number of prompts without two different ranks. NaN if no prompt counts.

Examples:

    >>> from trl_dpo_ext.evaluation.metric_loading import load_metric
    >>> metric = load_metric("reward_margin")
    >>> metric.compute(predictions=[[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], references=[[0, 1]] * 3)
    {'reward_margin': 2.0, 'low': 1.0, 'high': 3.0, 'num_rows': 3, 'num_left_out': 0}
"""

_CITATION = """
@article{efron1979bootstrap,
    title = {Bootstrap Methods: Another Look at the Jackknife},
    author = {Efron, Bradley},
    journal = {The Annals of Statistics},
    volume = {7},
    number = {1},
    pages = {1--26},
    year = {1979}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class RewardMargin(evaluate.Metric):
    def _info(self):
        return metric_info(_DESCRIPTION, _KWARGS_DESCRIPTION, _CITATION)

    def _compute(self, predictions, references, **options):
        return preference_metrics.reward_margin(predictions, references, **options)
