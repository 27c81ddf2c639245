"""Share of pairs whose preferred completion has the larger reward."""

import datasets
import evaluate

from trl_dpo_ext.evaluation import preference_metrics
from trl_dpo_ext.evaluation.metric_info import REWARDS_AND_RANKS, metric_info


__all__ = ["PreferenceAccuracy"]

_DESCRIPTION = """
Preference accuracy: the share of pairs of completions of a prompt in which the preferred one has the strictly larger
reward. Equal rewards are ties, which count as wrong. Every prompt counts once, regardless of its number of pairs.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`):
        Rewards of the completions of each prompt, such as `predictions` of a trainer's `predict`.
    references (`list` of `list` of `int`):
        Their ranks, such as `label_ids` of a trainer's `predict`: the smallest is the best, ties have equal ranks, and
        `None` is below every rank. Padding has rank -1 and reward NaN. The ranks
        of a pair, chosen first, are [0, 1].
    subsets (`list`, *optional*):
        Subset of each prompt. This is an argument of `compute`, in the order of all rows. With
        `evaluate.load(..., "subsets")` it is a column of names, which `add_batch` accepts, too.

Returns:
    `dict`: `preference_accuracy`; `ties`, the share of pairs with equal rewards; `num_rows`, the number of prompts
    that count; `num_left_out`, the number of prompts without two different ranks. With `subsets` also
    `preference_accuracy/NAME` and `mean_over_subsets`. NaN if no prompt counts.

Examples:

    >>> from trl_dpo_ext.evaluation.metric_loading import load_metric
    >>> metric = load_metric("preference_accuracy")
    >>> metric.compute(predictions=[[0.4, 0.1], [0.3, 0.2], [0.2, 0.2]], references=[[0, 1], [1, 0], [0, 1]])
    {'preference_accuracy': 0.3333333333333333, 'ties': 0.3333333333333333, 'num_rows': 3, 'num_left_out': 0}
"""

_CITATION = """
@inproceedings{lambert2025rewardbench,
    title = {{RewardBench}: Evaluating Reward Models for Language Modeling},
    author = {Lambert, Nathan and Pyatkin, Valentina and Morrison, Jacob and others},
    booktitle = {Findings of the Association for Computational Linguistics: NAACL 2025},
    year = {2025}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PreferenceAccuracy(evaluate.Metric):
    def _info(self):
        features = {
            "default": REWARDS_AND_RANKS,
            "subsets": {**REWARDS_AND_RANKS, "subsets": datasets.Value("string")},
        }
        if self.config_name not in features:
            raise ValueError(f'There is no configuration {self.config_name!r}: pass "subsets" or none.')
        return metric_info(_DESCRIPTION, _KWARGS_DESCRIPTION, _CITATION, features[self.config_name])

    def _compute(self, predictions, references, subsets=None):
        return preference_metrics.preference_accuracy(predictions, references, subsets=subsets)
