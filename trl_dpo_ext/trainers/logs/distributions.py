"""Distributions of an evaluation: histograms and the points of a reliability diagram, as rows of a file."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from trl_dpo_ext.metrics.calibration import reliability
from trl_dpo_ext.metrics.sums import Sums


__all__ = ["Distributions", "gather_values"]

_BINS = 50


@dataclass(frozen=True)
class Distributions:
    """
    Distributions of the values whose means an evaluation logs.

    Args:
        prefix (`str`): Prefix of the evaluation, `"eval"` or `"eval_<set>"`.
        values (`dict` of `np.ndarray`): Values by name, one for each example that has one.
        calibration ([`~trl_dpo_ext.metrics.sums.Sums`], *optional*): Sums of the calibration error.
    """

    prefix: str
    values: dict[str, np.ndarray]
    calibration: Sums | None

    def rows(self, step: int) -> list[dict[str, Any]]:
        """Rows of the file: histograms of 50 bins, and pairs, confidence and accuracy of each bin of confidence."""
        rows: list[dict[str, Any]] = []
        for name, values in self.values.items():
            counts, edges = np.histogram(values, bins=_BINS)
            rows.append({"step": step, "name": f"{self.prefix}_{name}"})
            rows[-1] |= {"edges": edges.tolist(), "counts": counts.tolist()}
        if self.calibration is not None:
            points = {
                name: [None if math.isnan(point) else point for point in column]
                for name, column in asdict(reliability(self.calibration)).items()
            }
            rows.append({"step": step, "name": f"{self.prefix}_rewards/calibration"} | points)
        return rows


def gather_values(batches: dict[str, list[Tensor]], accelerator: Accelerator) -> dict[str, np.ndarray]:
    """
    Collects the values of an evaluation's batches from all processes.

    Args:
        batches (`dict`):
            For each name, the values `(B,)` of every batch, NaN for a row without one. All processes have the same
            names.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator.

    Returns:
        `dict[str, np.ndarray]`: The finite values. Names without finite values are left out.
    """
    if not batches:
        return {}
    table = torch.stack([torch.cat(columns) for columns in batches.values()], dim=1).float()  # (n, M)
    # Processes may hold different numbers of rows
    table = accelerator.gather(accelerator.pad_across_processes(table, pad_index=torch.nan))
    columns = dict(zip(batches, table.T.cpu().numpy(), strict=True))
    return {name: column[np.isfinite(column)] for name, column in columns.items() if np.isfinite(column).any()}
