"""Calibration error of the preference probabilities that rewards imply."""

import evaluate

from trl_dpo_ext.evaluation import preference_metrics
from trl_dpo_ext.evaluation.metric_info import metric_info


__all__ = ["PreferenceCalibration"]

_DESCRIPTION = """
Expected calibration error of the Bradley-Terry probabilities that rewards imply. Pairs of completions of a prompt are
put into bins by the probability of the more probable order. In each bin, the mean probability is compared with the
share of pairs in the right order. Pairs with equal rewards count as half right.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`):
        Rewards of the completions of each prompt, in nats, such as `predictions` of a trainer's `predict`.
    references (`list` of `list` of `int`):
        Their ranks, such as `label_ids` of a trainer's `predict`: the smallest is the best, ties have equal ranks, and
        `None` is below every rank. Padding has rank -1 and reward NaN. The ranks
        of a pair, chosen first, are [0, 1].
    bins (`int`, *optional*, defaults to 10):
        Number of bins of equal width from 0.5 to 1.

Returns:
    `dict`: `calibration_error`, in [0, 1], NaN if no prompt counts; the points of the reliability diagram: `edges`
    (`bins + 1` numbers), `counts`, `confidence` and `accuracy` (`bins` each, NaN without pairs), where the pairs of a
    prompt have a total weight of 1; `num_rows`, the number of prompts that count; `num_left_out`, the number of
    prompts without two different ranks.

Examples:

    >>> from trl_dpo_ext.evaluation.metric_loading import load_metric
    >>> metric = load_metric("preference_calibration")
    >>> metrics = metric.compute(predictions=[[9.0, 0.0], [0.0, 9.0]], references=[[0, 1], [0, 1]], bins=2)
    >>> round(metrics["calibration_error"], 4), metrics["counts"], metrics["accuracy"]
    (0.4999, [0.0, 2.0], [nan, 0.5])
"""

_CITATION = """
@inproceedings{guo2017calibration,
    title = {On Calibration of Modern Neural Networks},
    author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
    booktitle = {International Conference on Machine Learning},
    pages = {1321--1330},
    year = {2017}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PreferenceCalibration(evaluate.Metric):
    def _info(self):
        return metric_info(_DESCRIPTION, _KWARGS_DESCRIPTION, _CITATION)

    def _compute(self, predictions, references, **options):
        return preference_metrics.preference_calibration(predictions, references, **options)
