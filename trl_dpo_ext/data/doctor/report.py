"""Report of the doctor on a dataset, as text and as JSON."""

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from trl_dpo_ext.data.doctor.findings import ERROR, SEVERITIES, Finding
from trl_dpo_ext.data.doctor.length_checks import Quantiles
from trl_dpo_ext.data.extent import Extent
from trl_dpo_ext.data.preparation_report import DataReport


__all__ = ["DoctorReport"]

_WIDTH = 100


@dataclass(frozen=True)
class DoctorReport:
    """
    Report of the doctor on a dataset. `str(report)` gives a readable page.

    Args:
        dataset_name (`str`): Name of the dataset.
        kind (`str`): `"preference pairs"`, `"rankings"` or `"preferred answers"`.
        examined (`int`): Number of examined rows.
        refused (`int`): Number of invalid rows, at which training would stop.
        preparation ([`~trl_dpo_ext.data.preparation_report.DataReport`]): Report of a trainer on the preparation of
            the other rows.
        extent ([`~trl_dpo_ext.data.extent.Extent`]): Smallest and largest token id and longest row in training.
        lengths (`dict[str, Quantiles]`): Lengths before truncation, by kind. Empty if no row is usable.
        max_length (`int`, *optional*): Number of tokens to which rows are truncated.
        recommended_max_length (`int`, *optional*): The smallest multiple of 64 that fits 99 % of the rows.
        longer_preferred (`tuple[float, float, float]`, *optional*): Share of rows whose longer answer is preferred,
            among those whose best and worst answer differ in length, and the ends of its 95 % interval.
        length_correlation (`float`, *optional*): Correlation of length and preference within rows.
        unread_columns (`list[str]`): Columns that training does not read.
        findings (`list[Finding]`): Errors, then warnings, then notes.
    """

    dataset_name: str
    kind: str
    examined: int
    refused: int
    preparation: DataReport
    extent: Extent
    lengths: dict[str, Quantiles]
    max_length: int | None
    recommended_max_length: int | None
    longer_preferred: tuple[float, float, float] | None
    length_correlation: float | None
    unread_columns: list[str]
    findings: list[Finding]

    def of_severity(self, severity: str) -> list[Finding]:
        """Findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def healthy(self) -> bool:
        """Whether training would accept every row."""
        return not self.of_severity(ERROR)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as lists, numbers and texts, for JSON."""
        return {"healthy": self.healthy, **asdict(self)}

    def __str__(self) -> str:
        parts = [self._head(), *filter(None, (self._lengths(), self._bias()))]
        for severity in SEVERITIES:
            if found := self.of_severity(severity):
                parts.append("\n\n".join([f"{severity.upper()}S", *map(_paragraph, found)]))
        return "\n\n".join([*parts, self._verdict()])

    def _head(self) -> str:
        head = f"The {self.dataset_name} dataset: {self.examined:,} rows of {self.kind} examined"
        head += f"\nAfter preparation: {self.preparation}; malformed: {self.refused:,}"
        unread = ", ".join(self.unread_columns)
        return f"{head}\nColumns that training does not read: {unread}" if unread else head

    def _lengths(self) -> str:
        if not self.lengths:
            return ""
        lines = [f"{'tokens':<28}{'median':>9}{'95 %':>9}{'longest':>9}"]
        lines += [f"{name:<28}{q.median:>9,}{q.p95:>9,}{q.max:>9,}" for name, q in self.lengths.items()]
        advice = f"99 % of the rows fit into `max_length={self.recommended_max_length}`"
        longest = self.lengths["prompt with longest answer"].max
        if self.max_length is None:
            advice += "; nothing is truncated."
        else:
            fits = "all fit" if longest <= self.max_length else f"the longest has {longest:,} tokens and does not fit"
            advice += f"; {fits} into the current {self.max_length:,}."
        return "\n".join([*lines, advice])

    def _bias(self) -> str:
        if self.longer_preferred is None or self.length_correlation is None:
            return ""
        share, low, high = self.longer_preferred
        return (
            f"The longer answer is preferred in {share:.1%} of the rows (95 % interval {low:.1%} to {high:.1%});\n"
            f"correlation of length and preference {self.length_correlation:+.2f}."
        )

    def _verdict(self) -> str:
        counts = [
            f"{(n := len(self.of_severity(severity)))} {severity}{'' if n == 1 else 's'}" for severity in SEVERITIES
        ]
        says = {
            True: "Training would accept every row.",
            False: "Training would stop or drop rows. Fix the errors first.",
        }
        return f"{', '.join(counts)}. {says[self.healthy]}"


def _paragraph(finding: Finding) -> str:
    head = finding.name
    if finding.count:
        shown = ", ".join(map(str, finding.rows)) + (", ..." if finding.count > len(finding.rows) > 0 else "")
        rows = f"{finding.count:,} row{'' if finding.count == 1 else 's'}"
        head += f": {rows}" + (f" ({shown})" if shown else "")
    texts = [finding.meaning, finding.fix and f"Fix: {finding.fix}", finding.example and f"First: {finding.example}"]
    lines = [line for text in texts if text for line in textwrap.wrap(text, _WIDTH - 4, break_long_words=False)]
    return "\n".join([f"  {head}", *(f"    {line}" for line in lines)])
