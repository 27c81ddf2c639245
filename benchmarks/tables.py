"""Tables in Markdown."""

from collections.abc import Sequence


__all__ = ["markdown", "number"]


def markdown(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(names) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (names, rule, *lines))


def number(value: float | str | None, unit: str = "") -> str:
    """Three digits of a number; nothing where there is none."""
    if value is None or value == "":
        return ""
    value = float(value)
    return (f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit
