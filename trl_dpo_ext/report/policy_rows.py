"""What the panels of several policies share: their styles, and a row for each policy."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from trl_dpo_ext.report.drawing import CHOSEN, GREY, REJECTED, SECOND


if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["draw_center", "name_rows", "styles_of"]

# Okabe and Ito's palette, and two of Tol's. Policies beyond it use it again, with another marker
_COLORS = (CHOSEN, REJECTED, SECOND, "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
_MARKERS = ("o", "s", "^", "D")
_MOST_LETTERS = 24


def styles_of(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns color and marker of each policy, by name, as options of matplotlib's `plot`."""
    return {
        name: {"color": _COLORS[i % len(_COLORS)], "marker": _MARKERS[i // len(_COLORS) % len(_MARKERS)]}
        for i, name in enumerate(names)
    }


def name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Names the rows at the heights 0, -1, -2, ..."""
    short = [name if len(name) <= _MOST_LETTERS else f"...{name[3 - _MOST_LETTERS :]}" for name in names]
    axes.set_yticks([-place for place in range(len(names))], short)
    axes.set_ylim(-len(names) + 0.5, 0.5)
    axes.margins(x=0.12)


def draw_center(axes: "Axes", value: float) -> None:
    """Draws a dotted vertical line, at the value of chance or at zero."""
    axes.axvline(value, color=GREY, linewidth=1.2, linestyle=":")
