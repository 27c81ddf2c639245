"""What the doctor finds, and what a check is: a name, how bad it is, what it means, how to mend it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from trl_dpo_ext.data.doctor.prepared_row import PreparedRow


__all__ = ["ERROR", "NOTE", "SEVERITIES", "WARNING", "ChatCheck", "Check", "Finding", "Refusals", "TextCheck"]

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")

_FIRST = 5  # row numbers that a finding names

# What differs between two messages of one kind: numbers, and values in quotes
_VALUES = re.compile(r"'[^']*'|\bnan\b|-?\binf\b|-?\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass
class Finding:
    """
    One thing that was found, and the rows that have it.

    Args:
        name (`str`): Name of the check.
        severity (`str`): `"error"`: training stops, or leaves the rows out; `"warning"`: training goes on with data
            that is probably not what was meant; `"note"`: good to know.
        meaning (`str`): What was found.
        fix (`str`): What to do about it.
        count (`int`): Rows that have it.
        rows (`list[int]`): Numbers of the first of them, from 0.
        example (`str`): What was found in the first of them.
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
    Looks at all usable rows, one after the other, and says what it found.

    A check of single rows is a class with the four texts and the method [`found`]. One that compares rows keeps what
    it has seen, and one that judges the whole data set overrides [`findings`].
    """

    name: ClassVar[str]
    severity: ClassVar[str]
    meaning: ClassVar[str]
    fix: ClassVar[str]

    def __init__(self) -> None:
        self.finding = self.new_finding()

    def new_finding(self) -> Finding:
        """A finding of this check, without a row."""
        return Finding(self.name, self.severity, self.meaning, self.fix)

    def look_at(self, rows: Sequence[PreparedRow]) -> None:
        """Looks at the next rows."""
        for row in rows:
            example = self.found(row)
            if example is not None:
                self.finding.add(row.index, example)

    def found(self, row: PreparedRow) -> str | None:
        """What is found in a row, or `None`."""
        raise NotImplementedError

    def findings(self) -> list[Finding]:
        """What was found in all."""
        return [self.finding] if self.finding.count else []


class TextCheck(Check):
    """A check that looks at rows of plain text only."""

    def look_at(self, rows: Sequence[PreparedRow]) -> None:
        super().look_at([row for row in rows if row.is_text])


class ChatCheck(Check):
    """A check that looks at conversations only."""

    def look_at(self, rows: Sequence[PreparedRow]) -> None:
        super().look_at([row for row in rows if row.is_chat])


class Refusals:
    """
    Rows for which one step of preparation gave a reason, grouped by reasons that differ only in values.

    Args:
        name (`str`): Name of the findings.
        severity (`str`): Their severity.
        meaning (`str`): What a reason means for training, before the first reason of each group.
        fix (`str`, *optional*): What to do. By default what follows the reason's first sentence.
    """

    def __init__(self, name: str, severity: str, meaning: str, fix: str = "") -> None:
        self.name, self.severity, self.meaning, self.fix = name, severity, meaning, fix
        self.groups: dict[str, Finding] = {}

    @property
    def count(self) -> int:
        """Rows with a reason."""
        return sum(finding.count for finding in self.groups.values())

    def add(self, reason: str, index: int, fix: str = "") -> None:
        """Counts a row; `fix` goes before that of all."""
        group, fix = _VALUES.sub("#", reason), fix or self.fix
        if group not in self.groups:
            what, _, advice = (reason, "", fix) if fix else reason.partition(". ")
            self.groups[group] = Finding(self.name, self.severity, f"{self.meaning}{what.rstrip('.')}.", advice)
        self.groups[group].add(index)

    def findings(self) -> list[Finding]:
        """One for each kind of reason, the most frequent first."""
        return sorted(self.groups.values(), key=lambda finding: -finding.count)
