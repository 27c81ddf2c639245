"""The table that a run prints: a line for each shape and contender."""

from collections.abc import Callable, Sequence

from benchmarks.results import TimingRow
from benchmarks.tables import markdown, number


__all__ = ["overview"]

_COLUMNS: dict[str, Callable[[TimingRow], str]] = {
    "shape": lambda row: f"{row.shape} ({row.lengths}), {row.groups} x K = {row.completions}",
    "contender": lambda row: row.contender,
    "tokens rows / computed / distinct": lambda row: " / ".join(
        f"{tokens:.0f}" for tokens in (row.row_tokens, row.computed_tokens, row.distinct_tokens)
    ),
    "padding %": lambda row: number(100 * row.padding_share),
    "ms": lambda row: number(1000 * row.seconds),
    "IQR": lambda row: number(1000 * row.seconds_iqr),
    "groups/s": lambda row: number(row.groups_per_second),
    "distinct tokens/s": lambda row: number(row.distinct_tokens_per_second),
    "x TRL": lambda row: number(row.speedup_over_trl),
    "x packed rows": lambda row: number(row.speedup_over_packed_rows),
    "limit": lambda row: number(row.flop_limit),
    "% of limit": lambda row: "" if row.share_of_limit is None else number(100 * row.share_of_limit),
    "MFU %": lambda row: number(row.mfu_percent),
    "HFU %": lambda row: number(row.hfu_percent),
    "waits": lambda row: str(row.synchronizations),
    "peak GiB": lambda row: number(row.peak_gib),
    "first loss ok": lambda row: {None: "", True: "yes", False: "no"}[row.first_loss_ok],
}


def overview(rows: Sequence[TimingRow]) -> str:
    """Timing rows in Markdown."""
    return markdown(tuple(_COLUMNS), [[text(row) for text in _COLUMNS.values()] for row in rows])
