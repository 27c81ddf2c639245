"""`frontier.csv`: a row for each evaluation of each run, and for what is estimated from the initial policy."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from trl_dpo_ext.whole_file import write_text


__all__ = ["BEST_OF_N", "OPTIMUM", "SFT", "Point", "last_points", "read_table", "write_table"]

SFT, BEST_OF_N, OPTIMUM = "SFT", "Best of N", "Optimum (estimate)"


@dataclass(frozen=True)
class Point:
    """
    A point of the frontier: an evaluation of a policy.

    Args:
        method (`str`):
            Method.
        knob (`str`):
            Setting of the run, such as `"beta=0.1"`.
        seed (`int`):
            Seed of the run.
        update (`int`):
            Number of updates before the evaluation.
        reward, reward_se (`float`):
            True reward, with its standard error over prompts.
        kl, kl_se (`float`):
            KL from the initial policy over whole completions, in nats: the exact KL of every step.
        kl_k1 (`float`):
            The same by log-ratios of the sampled tokens. Best of N: the upper bound log N - (N - 1) / N.
        finished_share (`float`):
            Share of completions that ended before `max_new_tokens` were over.
        mean_length (`float`):
            Tokens of a completion.
        new_words (`float`):
            Share of the words that occur neither in the texts nor in samples of the initial policy.
        wall_s (`float`):
            Seconds of training, without evaluations.
        samples_drawn (`int`):
            Completions that were sampled for training.
        reward_calls (`int`):
            Completions that were given a true reward for training.
    """

    method: str
    knob: str
    seed: int
    update: int
    reward: float
    reward_se: float
    kl: float
    kl_se: float
    kl_k1: float
    finished_share: float
    mean_length: float
    new_words: float
    wall_s: float
    samples_drawn: int
    reward_calls: int

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Point":
        """Returns the point of a row of the table, or of a file of a run."""
        return cls(**{one.name: _value(row[one.name], one.type) for one in fields(cls)})


def write_table(path: Path, points: Iterable[Point]) -> None:
    """Writes points as CSV. NaN is an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([one.name for one in fields(Point)])
    for point in points:
        writer.writerow([_cell(value) for value in astuple(point)])
    write_text(path, file.getvalue())


def read_table(path: Path) -> list[Point]:
    """Reads points."""
    with path.open(encoding="utf-8", newline="") as file:
        return [Point.of(row) for row in csv.DictReader(file)]


def _value(cell: Any, kind: Any) -> Any:
    return math.nan if kind is float and cell in ("", None) else kind(cell)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def last_points(points: Sequence[Point]) -> list[Point]:
    """Returns the last point of each run."""
    last = {(point.method, point.knob, point.seed): point for point in sorted(points, key=lambda point: point.update)}
    return list(last.values())
