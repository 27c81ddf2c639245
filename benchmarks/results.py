"""Rows of results, and the files that hold them."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import trl
from trl.trainer.utils import compute_flops_per_token, compute_mfu, get_peak_flops

from benchmarks.contender import Task
from benchmarks.measure import Measurement
from benchmarks.shapes import SHAPES, Shape, num_tokens
from benchmarks.sizes import machine_name


__all__ = ["MemoryRow", "TimingRow", "merge_into", "timing_rows", "where_and_when"]


@dataclass(frozen=True)
class _Row:
    date: str
    machine: str
    torch: str
    transformers: str
    trl: str
    model: str
    vocab_size: int
    attention: str
    tuning: str
    shape: str
    prompt_tokens: int
    answer_tokens: int
    completions: int
    groups: int
    contender: str


@dataclass(frozen=True)
class TimingRow(_Row):
    """
    Seconds of a contender's optimizer step.

    Args:
        repeats (`int`): Timed steps.
        seconds, seconds_iqr (`float`): Median, and distance of the quartiles.
        groups_per_second, distinct_tokens_per_second (`float`): Of the micro-batch, at the median.
        padding_share (`float`): Share of the computed tokens that is padding.
        speedup_over_trl, speedup_over_trl_cached (`float`, *optional*): TRL's median over this one.
        times_the_floor (`float`, *optional*): This median over the floor's.
        first_loss, first_gradient_norm (`float`): At the start; see [`~benchmarks.measure.Measurement`].
        mfu_percent (`float`, *optional*): What the distinct tokens need of the GPU's peak, trained in full.
        step_gib, peak_gib (`float`, *optional*): Memory on a GPU.
    """

    repeats: int
    seconds: float
    seconds_iqr: float
    groups_per_second: float
    distinct_tokens_per_second: float
    padding_share: float
    speedup_over_trl: float | None
    speedup_over_trl_cached: float | None
    times_the_floor: float | None
    first_loss: float
    first_gradient_norm: float
    mfu_percent: float | None
    step_gib: float | None
    peak_gib: float | None


@dataclass(frozen=True)
class MemoryRow(_Row):
    """Most memory of a contender's process on a CPU: what a step adds to what is there before it, and all of it."""

    step_gib: float | None
    peak_gib: float | None


def where_and_when(task: Task, shape: Shape, attention: str, model: str) -> dict[str, Any]:
    """The columns that say what was measured, and on which machine."""
    return {
        "date": date.today().isoformat(),
        "machine": machine_name(task.device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "model": model,
        "vocab_size": task.model.config.vocab_size,
        "attention": attention,
        "tuning": "lora" if task.lora else "full",
        "shape": shape.name,
        "prompt_tokens": shape.prompt,
        "answer_tokens": shape.answer,
        "completions": shape.completions,
        "groups": len(task.batches[0]),
    }


def timing_rows(common: dict[str, Any], task: Task, shape: Shape, found: Mapping[str, Measurement]) -> list[TimingRow]:
    """The measurements of one shape as rows, with the ratios between them."""
    medians = {name: float(np.median(measurement.seconds)) for name, measurement in found.items()}
    groups = len(task.batches[0])
    tokens = sum(map(num_tokens, task.batches)) / len(task.batches)

    def ratio(above: float | None, below: float | None) -> float | None:
        return above / below if above and below else None

    rows = []
    for name, measurement in found.items():
        median = medians[name]
        low, high = np.percentile(measurement.seconds, [25, 75])
        rows.append(
            TimingRow(
                **common,
                contender=name,
                repeats=len(measurement.seconds),
                seconds=median,
                seconds_iqr=float(high - low),
                groups_per_second=groups / median,
                distinct_tokens_per_second=tokens / median,
                padding_share=measurement.padding_share,
                speedup_over_trl=ratio(medians.get("trl"), median),
                speedup_over_trl_cached=ratio(medians.get("trl cached"), median),
                times_the_floor=ratio(median, medians.get("floor")),
                first_loss=measurement.first_loss,
                first_gradient_norm=measurement.first_gradient_norm,
                mfu_percent=_mfu(task, shape, tokens / median),
                step_gib=measurement.step_gib,
                peak_gib=measurement.peak_gib,
            )
        )
    return rows


def merge_into(path: Path, rows: Sequence[TimingRow] | Sequence[MemoryRow]) -> list[dict[str, str]]:
    """Writes rows to a file, where they replace earlier ones of the same measurement; returns all that are in it."""
    new = [{name: _text(value) for name, value in asdict(row).items()} for row in rows]
    names = [field.name for field in fields(rows[0])]
    # Contenders of one table are measured side by side: of a shape that is measured again nothing stays
    measured = {_table_of(row) for row in new}
    kept = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if _table_of(row) not in measured]
    places = list(SHAPES)
    together = sorted(kept + new, key=lambda row: (row["tuning"], places.index(row["shape"])))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(together)
    return together


def _table_of(row: Mapping[str, str]) -> tuple[str, str]:
    return row["tuning"], row["shape"]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _mfu(task: Task, shape: Shape, tokens_per_second: float) -> float | None:
    peak = None
    if task.device == "cuda":
        peak = get_peak_flops(torch.cuda.get_device_name(), "bfloat16" if task.bf16 else "float32")
    if peak is None:
        return None
    flops = compute_flops_per_token(task.model.config, shape.prompt + shape.answer)
    return compute_mfu(flops, tokens_per_second, 1, peak)
