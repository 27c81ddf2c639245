"""Distributions and samples of an evaluation, written to the run's files and to its experiment trackers."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from trl_dpo_ext.run_files import DISTRIBUTIONS, SAMPLES
from trl_dpo_ext.run_log import RunLog
from trl_dpo_ext.trainers.logs.distributions import Distributions
from trl_dpo_ext.trainers.logs.trackers import send_histograms, send_table


__all__ = ["show_evaluation"]


def show_evaluation(
    run_log: RunLog,
    callbacks: Sequence[TrainerCallback],
    step: int,
    distributions: Distributions | None,
    samples: Sequence[Mapping[str, Any]],
) -> None:
    """
    Writes the distributions and the samples of an evaluation. Only the main process may call it.

    Args:
        run_log ([`~trl_dpo_ext.run_log.RunLog`]):
            The run's files.
        callbacks (`Sequence` of [`~transformers.TrainerCallback`]):
            The trainer's callbacks, including those of the trackers.
        step (`int`):
            Update.
        distributions ([`~trl_dpo_ext.trainers.logs.distributions.Distributions`], *optional*):
            Distributions.
        samples (`Sequence` of `Mapping`):
            Samples, each with the `name` of its evaluation set.
    """
    if distributions is not None:
        run_log.append(DISTRIBUTIONS, distributions.rows(step))
        # The name itself is that of the mean, a scalar
        values = {f"{distributions.prefix}/{name}_distribution": v for name, v in distributions.values.items()}
        send_histograms(callbacks, values, step)
    if samples:
        run_log.append(SAMPLES, [{"step": step} | dict(sample) for sample in samples])
        send_table(callbacks, f"{samples[0]['name']}/samples", samples, step)
