"""Share of prompts to which a policy's answer is better than a baseline's."""

import datasets
import evaluate

from trl_dpo_ext.evaluation import preference_metrics
from trl_dpo_ext.evaluation.metric_info import metric_info


__all__ = ["WinRate"]

_DESCRIPTION = """
Win rate: the share of prompts to which a policy's answer is better than a baseline's. Ties count as half. Wilson's
interval is included, which is wider than necessary with ties. The input is two lists of scores, or a judge's outcomes.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list`):
        Score of the policy's answer to each prompt, higher is better. With `evaluate.load(..., "outcomes")` the
        outcome for the policy: "win", "tie" or "loss".
    references (`list` of `float`):
        Score of the baseline's answer to the same prompt. Equal scores are ties. Left out with "outcomes".
    confidence_level (`float`, *optional*, defaults to 0.95):
        Coverage of the interval, between 0 and 1.

Returns:
    `dict`: `win_rate`; `low` and `high`, its interval; `wins`, `ties` and `losses`, counts.

Examples:

    >>> from trl_dpo_ext.evaluation.metric_loading import load_metric
    >>> metrics = load_metric("win_rate").compute(predictions=[0.9, 0.5, 0.8, 0.7], references=[0.1, 0.5, 0.9, 0.2])
    >>> metrics["win_rate"], round(metrics["low"], 3), round(metrics["high"], 3)
    (0.625, 0.219, 0.908)
    >>> load_metric("win_rate", "outcomes").compute(predictions=["win", "win", "tie", "loss"])["win_rate"]
    0.625
"""

_CITATION = """
@article{wilson1927probable,
    title = {Probable Inference, the Law of Succession, and Statistical Inference},
    author = {Wilson, Edwin B.},
    journal = {Journal of the American Statistical Association},
    volume = {22},
    number = {158},
    pages = {209--212},
    year = {1927}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class WinRate(evaluate.Metric):
    def _info(self):
        features = {
            "default": {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")},
            "outcomes": {"predictions": datasets.Value("string")},
        }
        if self.config_name not in features:
            raise ValueError(f'There is no configuration {self.config_name!r}: pass "outcomes" or none.')
        return metric_info(_DESCRIPTION, _KWARGS_DESCRIPTION, _CITATION, features[self.config_name])

    def _compute(self, predictions, references=None, **options):
        if references is None:
            return preference_metrics.win_rate_of_outcomes(predictions, **options)
        return preference_metrics.win_rate(predictions, references, **options)
