"""What preparation did to a data set of rankings."""

from dataclasses import dataclass, fields
from typing import Any

from trl_dpo_ext.data.preparation_report import DataReport


__all__ = ["RankingReport"]


@dataclass(frozen=True)
class RankingReport(DataReport):
    """
    What preparation did to a data set of rankings. Counts are `None` where a streaming data set cannot be counted.

    Args:
        rows (`int` or `None`): Rows left.
        dropped (`int` or `None`): Rows left out because they say nothing: fewer than two completions, or all tied.
        first_dropped (`str`): Number of the first such row, and why.
        prompts_cut (`int` or `None`): Rows with a truncated prompt.
        answers_cut (`int` or `None`): Rows with a truncated completion.
        prompts_repeated (`int` or `None`): Rows left whose completions repeated their prompt, which is taken once.
        completions (`int` or `None`): Completions left, over all rows.
        completions_dropped (`int` or `None`): Completions left out of the rows left: empty ones, and copies.
        first_completion_dropped (`str`): Number of the row of the first such completion, and why.
        smallest (`int` or `None`): Completions of the row that has fewest.
        largest (`int` or `None`): Completions of the row that has most.
        tied (`int` or `None`): Rows left in which some completions tie.
    """

    completions: int | None = 0
    completions_dropped: int | None = 0
    first_completion_dropped: str = ""
    smallest: int | None = 0
    largest: int | None = 0
    tied: int | None = 0

    @classmethod
    def uncounted(cls) -> "RankingReport":
        """Report on a streaming data set."""
        unknown: dict[str, Any] = {f.name: "" if f.name.startswith("first") else None for f in fields(cls)}
        return cls(**unknown)

    def __str__(self) -> str:
        if self.rows is None:
            return "streaming, not counted"
        size = f"{self.smallest}" if self.smallest == self.largest else f"{self.smallest} to {self.largest}"
        return (
            f"{self.rows:,} rows of {size} completions ({self.dropped:,} rows and {self.completions_dropped:,} single "
            f"completions dropped), {self.tied:,} rows with ties, {self.prompts_cut:,} prompts and "
            f"{self.answers_cut:,} answers truncated{self._repeated}"
        )
