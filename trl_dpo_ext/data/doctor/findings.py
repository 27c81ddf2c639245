"""Findings of the doctor, and the base classes of its checks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from trl_dpo_ext.data.doctor.prepared_row import PreparedRow


__all__ = ["ERROR", "NOTE", "SEVERITIES", "WARNING", "ChatCheck", "Check", "Finding", "Refusals", "TextCheck"]

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")

_FIRST = 5  # number of rows listed in a finding

# Differences between two messages of the same kind: numbers, and values in quotes
_VALUES = re.compile(r"'[^']*'|\bnan\b|-?\binf\b|-?\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass
class Finding:
    """
    A problem of the dataset, and the rows that have it.

    Args:
        name (`str`): Name of the check.
        severity (`str`): `"error"`: training stops or drops the rows; `"warning"`: training continues with data that
            are probably not as intended; `"note"`: for information.
        meaning (`str`): Description of the problem.
        fix (`str`): How to fix it.
        count (`int`): Number of rows.
        rows (`list[int]`): Indices of the first rows.
        example (`str`): Example from the first row.
    """

    name: str
    severity: str
    meaning: str
    fix: str
    count: int = 0
    rows: list[int] = field(default_factory=list)
    example: str = ""

    def add(self, index: int, example: str = "") -> None:
        """Counts a row."""
        if not self.count:
            self.example = example
        self.count += 1
        if len(self.rows) < _FIRST:
            self.rows.append(index)


class Check:
    """
    Base class of checks. A check gets all usable rows one after another.

    A check of single rows has four texts and the method [`found`]. A check that compares rows stores what it needs. A
    check of the whole dataset overrides [`findings`].
    """

    name: ClassVar[str]
    severity: ClassVar[str]
    meaning: ClassVar[str]
    fix: ClassVar[str]

    def __init__(self) -> None:
        self.finding = self.new_finding()

    def new_finding(self) -> Finding:
        """Returns a finding of this check without rows."""
        return Finding(self.name, self.severity, self.meaning, self.fix)

    def look_at(self, rows: Sequence[PreparedRow]) -> None:
        """Checks the next rows."""
        for row in rows:
            example = self.found(row)
            if example is not None:
                self.finding.add(row.index, example)

    def found(self, row: PreparedRow) -> str | None:
        """Returns an example of the problem in a row, or `None` if the row does not have it."""
        raise NotImplementedError

    def findings(self) -> list[Finding]:
        """Returns the findings in all rows."""
        return [self.finding] if self.finding.count else []


class TextCheck(Check):
    """A check of rows of plain text."""

    def look_at(self, rows: Sequence[PreparedRow]) -> None:
        super().look_at([row for row in rows if row.is_text])


class ChatCheck(Check):
    """A check of conversations."""

    def look_at(self, rows: Sequence[PreparedRow]) -> None:
        super().look_at([row for row in rows if row.is_chat])


class Refusals:
    """
    Rows that a step of preparation rejects, grouped by reasons that differ only in values.

    Args:
        name (`str`): Name of the findings.
        severity (`str`): Severity of the findings.
        meaning (`str`): Text before the first reason of each group.
        fix (`str`, *optional*): How to fix the problem. Default: the text after the first sentence of the reason.
    """

    def __init__(self, name: str, severity: str, meaning: str, fix: str = "") -> None:
        self.name, self.severity, self.meaning, self.fix = name, severity, meaning, fix
        self.groups: dict[str, Finding] = {}

    @property
    def count(self) -> int:
        """Number of rows with a reason."""
        return sum(finding.count for finding in self.groups.values())

    def add(self, reason: str, index: int, fix: str = "") -> None:
        """Adds a row. `fix` replaces the default."""
        group, fix = _VALUES.sub("#", reason), fix or self.fix
        if group not in self.groups:
            what, _, advice = (reason, "", fix) if fix else reason.partition(". ")
            self.groups[group] = Finding(self.name, self.severity, f"{self.meaning}{what.rstrip('.')}.", advice)
        self.groups[group].add(index)

    def findings(self) -> list[Finding]:
        """Returns one finding for each kind of reason, the most frequent first."""
        return sorted(self.groups.values(), key=lambda finding: -finding.count)
