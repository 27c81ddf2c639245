"""The count of what preparation did to a dataset."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from trl_dpo_ext.data.checks import (
    COMPLETIONS_TRUNCATED,
    LEFT_OUT,
    PROBLEM,
    PROMPT_REPEATED,
    PROMPT_TRUNCATED,
    WHY_LEFT_OUT,
)


__all__ = ["DataReport", "PreparationCount", "RankingReport"]


@dataclass(frozen=True)
class DataReport:
    """
    What preparation did to a dataset of pairs. Counts are `None` for a stream, which cannot be counted beforehand.

    Args:
        rows (`int` or `None`): Rows left.
        dropped (`int` or `None`): Rows left out because they carry no preference.
        first_dropped (`str`): Number of the first such row, and why.
        prompts_truncated (`int` or `None`): Rows with a truncated prompt.
        answers_truncated (`int` or `None`): Rows with a truncated completion.
        prompts_repeated (`int` or `None`): Rows left whose completions repeated their prompt, which is taken once.
    """

    rows: int | None
    dropped: int | None = 0
    first_dropped: str = ""
    prompts_truncated: int | None = 0
    answers_truncated: int | None = 0
    prompts_repeated: int | None = 0

    @classmethod
    def uncounted(cls) -> "DataReport":
        """Report on a stream."""
        unknown: dict[str, Any] = {f.name: "" if f.name.startswith("first") else None for f in fields(cls)}
        return cls(**unknown)

    @property
    def share_truncated(self) -> float:
        """Share of rows with a truncated prompt or completion (at most: a row may have both)."""
        if not self.rows:
            return 0.0
        return min(1.0, ((self.prompts_truncated or 0) + (self.answers_truncated or 0)) / self.rows)

    def warnings(self, dataset_name: str) -> list[str]:
        """What a user should know before training."""
        found = []
        if self.dropped:
            found.append(
                f"{self.dropped} rows of the {dataset_name} dataset are left out (first: {self.first_dropped})."
            )
        if self.prompts_repeated:
            found.append(
                f"The answers of {self.prompts_repeated} rows of the {dataset_name} dataset begin with their prompt, "
                "which is taken once."
            )
        return found

    def __str__(self) -> str:
        if self.rows is None:
            return "streaming, not counted"
        return (
            f"{self.rows:,} rows{self._dropped}, {self.prompts_truncated:,} prompts and {self.answers_truncated:,} "
            f"answers truncated{self._repeated}"
        )

    @property
    def _repeated(self) -> str:
        if not self.prompts_repeated:
            return ""
        return f", {self.prompts_repeated:,} prompts taken once that the answers repeated"

    @property
    def _dropped(self) -> str:
        return f" ({self.dropped:,} dropped)"


@dataclass(frozen=True)
class RankingReport(DataReport):
    """
    What preparation did to a dataset of rankings: also counts of completions.

    Args:
        rows (`int` or `None`): Rows left.
        dropped (`int` or `None`): Rows left out because they carry no preference: fewer than two completions, or all
            tied.
        first_dropped (`str`): Number of the first such row, and why.
        prompts_truncated (`int` or `None`): Rows with a truncated prompt.
        answers_truncated (`int` or `None`): Rows with a truncated completion.
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

    @property
    def _dropped(self) -> str:
        size = f"{self.smallest}" if self.smallest == self.largest else f"{self.smallest} to {self.largest}"
        return (
            f" of {size} completions ({self.dropped:,} rows and {self.completions_dropped:,} single completions "
            f"dropped), {self.tied:,} rows with ties"
        )


class PreparationCount:
    """
    Counts what preparation did to rows, one after another.

    Args:
        of_rankings (`bool`): Whether completions are counted as well.
    """

    def __init__(self, of_rankings: bool) -> None:
        self.of_rankings = of_rankings
        self.usable: list[int] = []  # numbers of the rows left
        self._counts: Counter[str] = Counter()
        self._sizes: list[int] = []
        self._firsts = {"first_dropped": "", "first_completion_dropped": ""}

    def add(self, number: int, counted: Mapping[str, Any]) -> None:
        """Adds a row, by its number, the columns of it that are only counted, and its `ranks`."""
        if counted[PROBLEM]:
            self._counts["dropped"] += 1
            self._note("first_dropped", number, counted[PROBLEM])
            return
        self.usable.append(number)
        self._sizes.append(len(counted["ranks"]))
        self._counts["prompts_truncated"] += counted[PROMPT_TRUNCATED]
        self._counts["answers_truncated"] += counted[COMPLETIONS_TRUNCATED]
        self._counts["prompts_repeated"] += counted[PROMPT_REPEATED]
        self._counts["completions_dropped"] += counted[LEFT_OUT]
        self._counts["tied"] += max(counted["ranks"]) + 1 < len(counted["ranks"])
        self._note("first_completion_dropped", number, counted[WHY_LEFT_OUT])

    def report(self) -> DataReport:
        """Returns the report on all rows that were added."""
        made = RankingReport if self.of_rankings else DataReport
        sizes = self._sizes or [0]
        counts: dict[str, Any] = {
            "rows": len(self.usable),
            "completions": sum(sizes),
            "smallest": min(sizes),
            "largest": max(sizes),
            **self._counts,
            **self._firsts,
        }
        return made(**{field.name: counts.get(field.name, 0) for field in fields(made)})

    def _note(self, name: str, number: int, why: str) -> None:
        if why and not self._firsts[name]:
            self._firsts[name] = f"row {number}, {why}"
