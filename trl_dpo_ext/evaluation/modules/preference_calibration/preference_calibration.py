"""Whether the preference probabilities that rewards imply are as often right as they say."""

import datasets
import evaluate

from trl_dpo_ext.evaluation import preference_metrics


__all__ = ["PreferenceCalibration"]

_DESCRIPTION = """
Expected calibration error of the Bradley-Terry probabilities that rewards imply: pairs of completions of a prompt fall
into bins by the probability of the favoured one; in each bin, its mean is compared with the share of pairs in which
the favoured one is the preferred one. Equal rewards favour neither and are half right.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`):
        Rewards of the completions of each prompt, in nats, such as `predictions` of a trainer's `predict`.
    references (`list` of `list` of `int`):
        Their ranks, such as its `label_ids`: the smallest is the best, equal for ties, `None` for unranked (below
        every ranked one) and -1, beside a reward of NaN, where a row has no such completion. Of a pair,
        chosen first: [0, 1].
    bins (`int`, *optional*, defaults to 10):
        Bins of equal width from 0.5 to 1.

Returns:
    `dict`: `calibration_error`, in [0, 1], NaN where no prompt counts; the points of the reliability diagram: `edges`
    (`bins + 1` numbers), `counts`, `confidence` and `accuracy` (`bins` each, NaN without pairs), where all pairs of a
    prompt count as one together; `num_rows`, the prompts that count, and `num_left_out`, those without two completions
    of different rank.

Examples:

    >>> from trl_dpo_ext.evaluation.metric_loading import load_metric
    >>> metric = load_metric("preference_calibration")
    >>> figures = metric.compute(predictions=[[9.0, 0.0], [0.0, 9.0]], references=[[0, 1], [0, 1]], bins=2)
    >>> round(figures["calibration_error"], 4), figures["counts"], figures["accuracy"]
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
        return preference_metrics.preference_calibration(predictions, references, **options)
