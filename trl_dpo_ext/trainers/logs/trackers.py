"""Histograms and tables for the experiment trackers of a run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback


__all__ = ["send_histograms", "send_table"]


def send_histograms(callbacks: Iterable[TrainerCallback], values: Mapping[str, np.ndarray], step: int) -> None:
    """
    Sends distributions to those of TensorBoard, Weights & Biases and trackio that the run reports to.

    Args:
        callbacks (`Iterable` of [`~transformers.TrainerCallback`]):
            The trainer's callbacks.
        values (`Mapping` of `np.ndarray`):
            Values by name.
        step (`int`):
            Update.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            for name, column in values.items():
                callback.tb_writer.add_histogram(name, column, step)
        elif isinstance(callback, WandbCallback):
            import wandb

            if wandb.run is not None:
                wandb.log(_at(step) | {name: wandb.Histogram(column) for name, column in values.items()})
        elif isinstance(callback, TrackioCallback):
            import trackio

            trackio.log(_at(step) | {name: trackio.Histogram(column) for name, column in values.items()})


def send_table(callbacks: Iterable[TrainerCallback], name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Sends a table of rows with the same keys. Other arguments are the same as in [`send_histograms`]."""
    table = pd.DataFrame(rows)
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_text(name, _markdown(rows), step)
        elif isinstance(callback, WandbCallback):
            import wandb

            if wandb.run is not None:
                wandb.log(_at(step) | {name: wandb.Table(dataframe=table)})
        elif isinstance(callback, TrackioCallback):
            import trackio

            trackio.log(_at(step) | {name: trackio.Table(dataframe=table)})


def _at(step: int) -> dict[str, int]:
    return {"train/global_step": step}  # the same name as in HF's callbacks


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    def cells(values: Iterable[Any]) -> str:
        shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)
        return "| " + " | ".join(text.replace("|", "\\|").replace("\n", "<br>") for text in shown) + " |"

    return "\n".join([cells(rows[0]), "|" + " --- |" * len(rows[0]), *(cells(row.values()) for row in rows)])
