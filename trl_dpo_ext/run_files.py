"""What a run writes: its files and the names of its metrics. Trainers write them, and the report reads them."""

import re


__all__ = ["DISTRIBUTIONS", "METRICS", "RUN_LOG", "SAMPLES", "STATE", "split_metric_name"]

# Beside the weights: what their rewards are measured against, and how they were trained
STATE = "trl_dpo_ext.json"
# A folder of JSON lines, each with the `step` that it was written at
RUN_LOG = "run_log"
METRICS = "metrics.jsonl"
DISTRIBUTIONS = "distributions.jsonl"
SAMPLES = "samples.jsonl"

_METRICS = (
    "loss",
    "aux_loss",
    "learning_rate",
    "grad_norm",
    "entropy",
    "kl_per_token",
    "mean_token_accuracy",
    "num_tokens",
    "epoch",
    "logps/(?:chosen|rejected)(?:_drift)?",
    "logits/(?:chosen|rejected)",
    "rewards/(?:chosen|rejected|margins|margins_neighbors|accuracies|accuracies_from_length|length_correlation)",
    "rewards/(?:calibration_error|gradient_weight|gradient_weight_near_0)",
    "rewards/(?:kendall_tau|top1_accuracies|order_probabilities)",
    r"rewards/rank_\d+",
    "rewards/calibration",  # a distribution
)
# The shortest prefix wins, so that `eval_aux_loss` is the `aux_loss` of `eval` and not the `loss` of a set `aux`
_NAME = re.compile(rf"(?:(?P<prefix>.+?)_)??(?P<metric>{'|'.join(_METRICS)})")


def split_metric_name(name: str) -> tuple[str | None, str] | None:
    """
    Splits the name that a metric is logged by.

    Returns:
        `tuple` or `None`: The prefix of its evaluation (`None` in training) and the metric; `None` for a name
        that no trainer of this package logs.

    Example:

    ```python
    >>> from trl_dpo_ext.run_files import split_metric_name

    >>> split_metric_name("eval_rewards/margins")
    ('eval', 'rewards/margins')
    >>> split_metric_name("loss")
    (None, 'loss')
    >>> split_metric_name("train_runtime")

    ```
    """
    found = _NAME.fullmatch(name)
    return None if found is None else (found["prefix"], found["metric"])
