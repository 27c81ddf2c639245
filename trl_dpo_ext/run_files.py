"""Names of the files and metrics of a run. Trainers write them, and the report reads them."""

import re


__all__ = ["DISTRIBUTIONS", "METRICS", "RL_STATE", "RUN_LOG", "SAMPLES", "STATE", "split_metric_name"]

# Description of the run, saved with the weights: reference of the rewards, and training
STATE = "trl_dpo_ext.json"
# The same of a run on Eq. 3, in its checkpoints
RL_STATE = "trl_dpo_ext_rl.json"
# Folder of JSON Lines files. Each line has the `step` at which it was written
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
    "reward",
    "objective",
    "kl_sequence",
    "beta",
    "value_loss",
    "completions/(?:finished|mean_length)",
)
# The shortest prefix is used: `eval_aux_loss` is the `aux_loss` of `eval`, not the `loss` of a set `aux`
_NAME = re.compile(rf"(?:(?P<prefix>.+?)_)??(?P<metric>{'|'.join(_METRICS)})")


def split_metric_name(name: str) -> tuple[str | None, str] | None:
    """
    Splits the logged name of a metric.

    Returns:
        `tuple` or `None`: Prefix of its evaluation set (`None` in training) and metric; `None` for a name that no
        trainer of this package logs.

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
