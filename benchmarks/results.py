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
from trl.trainer.utils import get_peak_flops

from benchmarks.contender import Task
from benchmarks.contenders import with_reference_of
from benchmarks.flops import Costs, distinct_work, row_work
from benchmarks.measure import Measurement, starts_at_its_reference
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
    tuning: str
    shape: str
    lengths: str
    prompt_tokens: int
    answer_tokens: int
    completions: int
    groups: int
    contender: str


@dataclass(frozen=True)
class TimingRow(_Row):
    """
    Seconds of a contender's optimizer step, and what they are worth.

    Args:
        path (`str`): How attention is computed, in words.
        row_tokens, distinct_tokens (`float`): Mean of a micro-batch: tokens of all prompts with each of their answers,
            and those of prompts and answers once.
        computed_tokens, padding_share (`float`): Tokens that the policy's forwards of a step compute, padding
            included, and the share of it that is padding (TRL trains each answer in K - 1 pairs).
        repeats (`int`): Timed steps.
        seconds, seconds_iqr (`float`): Median, and distance of the quartiles.
        groups_per_second, distinct_tokens_per_second (`float`): Of the micro-batch, at the median.
        speedup_over_trl, speedup_over_packed_rows (`float`, *optional*): TRL's median over this one, and that of
            separate rows without padding (`ours packed`); with the reference computed before, if this has it so.
        flop_limit (`float`): Operations of separate rows without padding over those of shared prompts.
        share_of_limit (`float`, *optional*): Of a contender that shares prompts: how much of it is reached.
        times_the_floor (`float`, *optional*): This median over the floor's.
        mfu_percent, hfu_percent (`float`, *optional*): On a GPU, the operations that the distinct tokens need, and
            those that the contender executes, of the GPU's peak.
        synchronizations (`int`): Of a micro-batch.
        first_loss, first_gradient_norm (`float`): At the start; see [`~benchmarks.measure.Measurement`].
        first_loss_ok (`bool`, *optional*): Whether the first loss is that of a policy at its reference.
        step_gib, peak_gib (`float`, *optional*): Memory on a GPU.
    """

    path: str
    row_tokens: float
    distinct_tokens: float
    computed_tokens: float
    padding_share: float
    repeats: int
    seconds: float
    seconds_iqr: float
    groups_per_second: float
    distinct_tokens_per_second: float
    speedup_over_trl: float | None
    speedup_over_packed_rows: float | None
    flop_limit: float
    share_of_limit: float | None
    times_the_floor: float | None
    mfu_percent: float | None
    hfu_percent: float | None
    synchronizations: int
    first_loss: float
    first_gradient_norm: float
    first_loss_ok: bool | None
    step_gib: float | None
    peak_gib: float | None


@dataclass(frozen=True)
class MemoryRow(_Row):
    """Most memory of a contender's process on a CPU: what a step adds to what is there before it, and all of it."""

    step_gib: float | None
    peak_gib: float | None


def where_and_when(task: Task, shape: Shape, model: str) -> dict[str, Any]:
    """The columns that say what was measured, and on which machine."""
    return {
        "date": date.today().isoformat(),
        "machine": machine_name(task.device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "model": model,
        "vocab_size": task.model.config.vocab_size,
        "tuning": "lora" if task.lora else "full",
        "shape": shape.name,
        "lengths": shape.lengths,
        "prompt_tokens": shape.prompt,
        "answer_tokens": shape.answer,
        "completions": shape.completions,
        "groups": len(task.batches[0]),
    }


def timing_rows(common: dict[str, Any], task: Task, shape: Shape, found: Mapping[str, Measurement]) -> list[TimingRow]:
    """The measurements of one shape as rows, with the ratios between them."""
    medians = {name: float(np.median(measurement.seconds)) for name, measurement in found.items()}
    return [_timing_row(common, task, shape, name, found[name], medians) for name in found]


def _timing_row(
    common: dict[str, Any],
    task: Task,
    shape: Shape,
    name: str,
    measurement: Measurement,
    medians: Mapping[str, float],
) -> TimingRow:
    median = medians[name]
    low, high = np.percentile(measurement.seconds, [25, 75])
    batches = len(task.batches)
    rows, distinct = ([work(batch) for batch in task.batches] for work in (row_work, distinct_work))
    tokens = sum(map(num_tokens, task.batches)) / batches
    costs = Costs.of(task.model)
    live = "cached" not in name and name != "floor"
    limit = sum(costs.executed(work, live, task.lora) for work in rows)
    limit /= sum(costs.executed(work, live, task.lora) for work in distinct)
    needed = float(np.mean([costs.needed(work, task.lora) for work in distinct]))
    executed = float(np.mean([costs.executed(work, live, task.lora) for work in measurement.work]))
    computed = float(np.mean([work.tokens for work in measurement.work]))
    over_packed = _ratio(medians.get(with_reference_of("ours packed", name)), median) if name != "floor" else None
    shares = name.startswith("ours") and not name.endswith(("packed", "padded"))
    return TimingRow(
        **common,
        contender=name,
        path=measurement.path,
        row_tokens=sum(work.tokens for work in rows) / batches,
        distinct_tokens=tokens,
        computed_tokens=computed,
        padding_share=sum(work.padding for work in measurement.work) / (computed * len(measurement.work)),
        repeats=len(measurement.seconds),
        seconds=median,
        seconds_iqr=float(high - low),
        groups_per_second=len(task.batches[0]) / median,
        distinct_tokens_per_second=tokens / median,
        speedup_over_trl=_ratio(medians.get(with_reference_of("trl", name)), median),
        speedup_over_packed_rows=over_packed,
        flop_limit=limit,
        share_of_limit=_ratio(over_packed, limit) if shares else None,
        times_the_floor=_ratio(median, medians.get("floor")),
        mfu_percent=_share_of_peak(task, needed / median),
        hfu_percent=_share_of_peak(task, executed / median),
        synchronizations=measurement.synchronizations,
        first_loss=measurement.first_loss,
        first_gradient_norm=measurement.first_gradient_norm,
        first_loss_ok=starts_at_its_reference(name, measurement.first_loss, shape.completions, task.bf16),
        step_gib=measurement.step_gib,
        peak_gib=measurement.peak_gib,
    )


def merge_into(path: Path, rows: Sequence[TimingRow] | Sequence[MemoryRow]) -> list[dict[str, str]]:
    """
    Writes rows to a file, where they replace earlier ones of the same measurement; returns all that are in it.

    Raises:
        ValueError: If the file has other columns.
    """
    new = [{name: _text(value) for name, value in asdict(row).items()} for row in rows]
    names = [field.name for field in fields(rows[0])]
    # Contenders of one table are measured side by side: of a shape that is measured again nothing stays
    measured = {_table_of(row) for row in new}
    kept = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            kept = [row for row in reader if _table_of(row) not in measured]
            if reader.fieldnames != names:
                raise ValueError(f"{path} was written by another version, with other columns. Use another `--output`.")
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
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _share_of_peak(task: Task, flops_per_second: float) -> float | None:
    if task.device != "cuda":
        return None
    peak = get_peak_flops(torch.cuda.get_device_name(), "bfloat16" if task.bf16 else "float32")
    return None if peak is None else 100 * flops_per_second / peak
