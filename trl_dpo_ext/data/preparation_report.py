"""The count of what preparation did to a data set."""

from dataclasses import dataclass

from datasets import Dataset

from trl_dpo_ext.data.checks import PROBLEM


__all__ = ["DataReport", "usable_rows"]


@dataclass(frozen=True)
class DataReport:
    """
    What preparation did to a data set. Counts are `None` where a streaming data set cannot be counted beforehand.

    Args:
        rows (`int` or `None`): Rows left.
        dropped (`int` or `None`): Rows left out because they carry no preference.
        first_dropped (`str`): Number of the first such row, and why.
        prompts_cut (`int` or `None`): Rows with a truncated prompt.
        answers_cut (`int` or `None`): Rows with a truncated answer.
        prompts_repeated (`int` or `None`): Rows left whose answers repeated their prompt, which is taken once.
    """

    rows: int | None
    dropped: int | None = 0
    first_dropped: str = ""
    prompts_cut: int | None = 0
    answers_cut: int | None = 0
    prompts_repeated: int | None = 0

    @property
    def share_cut(self) -> float:
        """Share of rows with a truncated prompt or answer (at most: a row may have both)."""
        if not self.rows:
            return 0.0
        return min(1.0, ((self.prompts_cut or 0) + (self.answers_cut or 0)) / self.rows)

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
            f"{self.rows:,} rows ({self.dropped:,} dropped), {self.prompts_cut:,} prompts and "
            f"{self.answers_cut:,} answers truncated{self._repeated}"
        )

    @property
    def _repeated(self) -> str:
        if not self.prompts_repeated:
            return ""
        return f", {self.prompts_repeated:,} prompts taken once that the answers repeated"


def usable_rows(prepared: Dataset) -> tuple[list[int], str]:
    """Numbers of the rows that preparation leaves in, and the first one that it leaves out, with the reason."""
    problems = prepared[PROBLEM][:]
    numbers = [number for number, problem in enumerate(problems) if not problem]
    return numbers, next((f"row {number}, {problem}" for number, problem in enumerate(problems) if problem), "")
