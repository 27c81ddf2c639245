"""By how much rewards prefer the best completion to the worst."""

import datasets
import evaluate

from trl_dpo_ext.evaluation import preference_metrics


__all__ = ["RewardMargin"]

_DESCRIPTION = """
Mean over prompts of the reward of the best completion minus that of the worst (of a pair: chosen minus rejected), the
mean over those that tie, with a percentile bootstrap interval over prompts.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`):
        Rewards of the completions of each prompt, such as `predictions` of a trainer's `predict`.
    references (`list` of `list` of `int`):
        Their ranks, such as its `label_ids`: the smallest is the best, equal for ties, `None` for unranked (below
        every ranked one) and -1, beside a reward of NaN, where a row has no such completion. Of a pair,
        chosen first: [0, 1].
    confidence_level (`float`, *optional*, defaults to 0.95):
        Coverage of the interval, between 0 and 1.
    num_resamples (`int`, *optional*, defaults to 9999):
        Draws of the bootstrap.
    seed (`int`, *optional*, defaults to 0):
        Seed of the draws.

Returns:
    `dict`: `reward_margin`; `low` and `high`, NaN with fewer than two prompts; `num_rows`, the prompts that count, and
    `num_left_out`, those without two completions of different rank. NaN where no prompt counts.

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
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    # As `int64`, ranks such as 0.5 would be cut without a word
                    "references": datasets.List(datasets.Value("float64")),
                }
            ),
        )

    def _compute(self, predictions, references, **options):
        return preference_metrics.reward_margin(predictions, references, **options)
