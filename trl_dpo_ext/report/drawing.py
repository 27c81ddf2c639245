"""The style and the shared parts of all panels. Only this module of the report needs matplotlib."""

import io
import math
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from trl_dpo_ext.report.run_data import Curve, RunData


try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.colors import LinearSegmentedColormap, to_hex
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter
except ImportError as error:
    raise ImportError('The report needs matplotlib: pip install "trl-dpo-ext[report]"') from error


__all__ = [
    "ANSWERS",
    "CHOSEN",
    "COLORS",
    "GREY",
    "INK",
    "REJECTED",
    "SECOND",
    "draw_curves",
    "draw_key",
    "draw_reference_line",
    "draw_sample",
    "draw_update_axis",
    "rank_colors",
    "source_styles",
    "svg_element",
    "window_means",
    "write_png",
]

Draw = Callable[[Axes], None]

# Okabe and Ito's palette, for color-blind readers. The page has its own shades of them in dark mode
INK, GREY, GRID = "#2d3748", "#718096", "#e2e8f0"
CHOSEN, REJECTED, SECOND = "#0072b2", "#d55e00", "#009e73"
# Of the two completions of a pair: the name in metrics, the label and the color
ANSWERS = (("chosen", "chosen", CHOSEN), ("rejected", "rejected", REJECTED))
COLORS = {"ink": INK, "grey": GREY, "grid": GRID, "chosen": CHOSEN, "rejected": REJECTED, "second": SECOND}

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.formatter.limits": (-3, 5),
    "axes.grid": True,
    "axes.labelcolor": GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.dpi": 120,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "trl-dpo-ext",  # the same run gives the same file
    "text.color": INK,
    "text.parse_math": False,  # names of evaluation sets are shown as they are
    "xtick.color": GREY,
    "ytick.color": GREY,
}
_MARKERS, _DASHES = "os^Dvp*X", ("-", "--", "-.", ":")
_MOST_POINTS = 100  # a longer training curve is drawn as means of windows, with a band for their range


def window_means(curve: Curve, most: int = _MOST_POINTS) -> list[tuple[float, float, float, float]]:
    """
    Returns a curve in at most `most` windows of equally many consecutive points (the last may have fewer).

    Args:
        curve ([`~trl_dpo_ext.report.run_data.Curve`]):
            Values of a metric; those that are not finite are left out.
        most (`int`):
            Number of windows at most.

    Returns:
        `list[tuple[float, float, float, float]]`: For each window the means of its steps and of its values, and its
        smallest and largest value.

    Example:
    ```python
    >>> from trl_dpo_ext.report.drawing import window_means
    >>> from trl_dpo_ext.report.run_data import Curve

    >>> window_means(Curve([10, 20, 30], [0.5, 0.7, 0.9]), most=2)
    [(15.0, 0.6, 0.5, 0.7), (30.0, 0.9, 0.9, 0.9)]

    ```
    """
    points = curve.finite()
    size = math.ceil(len(points) / most)
    windows = []
    for start in range(0, len(points), max(1, size)):
        steps, values = zip(*points[start : start + size], strict=True)
        windows.append((sum(steps) / len(steps), sum(values) / len(values), min(values), max(values)))
    return windows


def draw_curves(axes: Axes, run: RunData, metrics: dict[str, tuple[str, str]], ylabel: str) -> None:
    """
    Draws metrics against the update: training batches thin and light, evaluation sets bold, each with its marker.
    A cross at the bottom marks a value that is not finite.

    Args:
        axes (`matplotlib.axes.Axes`):
            Where to draw.
        run ([`~trl_dpo_ext.report.run_data.RunData`]):
            The run.
        metrics (`dict[str, tuple[str, str]]`):
            Label and color of each metric, by its name; those that the run did not log are left out.
        ylabel (`str`):
            Label of the value axis.
    """
    at_bottom = axes.get_xaxis_transform()
    logged = {metric: look for metric, look in metrics.items() if run.curves(metric)}
    for metric, (_, color) in logged.items():
        for where, curve in run.curves(metric).items():
            broken = [step for step, value in zip(curve.steps, curve.values, strict=True) if not math.isfinite(value)]
            axes.plot(broken, [0.03] * len(broken), "x", color=color, transform=at_bottom)
            if where == "training":
                _draw_training(axes, curve, color)
            else:
                _draw_evaluation(axes, curve, color, list(run.evaluation).index(where))
    if len(logged) > 1:
        draw_key(axes, dict(logged.values()))
    draw_update_axis(axes, ylabel)


def draw_update_axis(axes: Axes, ylabel: str) -> None:
    """Labels the axes: updates as whole numbers on the horizontal one, `ylabel` on the vertical one."""
    last = axes.get_xlim()[1]
    axes.set(xlabel="update", ylabel=ylabel, xlim=(-0.02 * last, last))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _draw_training(axes: Axes, curve: Curve, color: str) -> None:
    windows = window_means(curve)
    steps, means, low, high = zip(*windows, strict=True)
    if len(windows) < len(curve.finite()):
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(steps, means, color=color, linewidth=1, alpha=0.5, marker="." if len(windows) < 3 else "")


def _draw_evaluation(axes: Axes, curve: Curve, color: str, number: int) -> None:
    steps, values = zip(*curve.finite(), strict=True)
    axes.plot(steps, values, color=color, markevery=max(1, len(steps) // 20), **_evaluation_style(number))


def _evaluation_style(number: int) -> dict[str, Any]:
    return {
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linewidth": 2,
        "markersize": 5,
    }


def draw_reference_line(axes: Axes, value: float) -> None:
    """Draws a dotted horizontal line, at the value of chance or at zero."""
    axes.axhline(value, color=GREY, linewidth=1.2, linestyle=":")


def draw_key(axes: Axes, colors: dict[str, str]) -> None:
    """Draws the legend of the colors below the axes, where it hides no curve."""
    handles = [Line2D([], [], color=color, linewidth=3, label=label) for label, color in colors.items()]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, -0.2),
        ncols=8,  # then a second line
        handlelength=0.8,
        handletextpad=0.5,
        columnspacing=1.0,
        borderaxespad=0,
    )


def rank_colors(places: int) -> dict[str, str]:
    """Colors of the ranks 1 (best) to `places`, from the color of chosen to that of rejected."""
    shades = LinearSegmentedColormap.from_list("ranks", [CHOSEN, "#b0a99f", REJECTED])
    return {str(place + 1): to_hex(shades(place / max(1, places - 1))) for place in range(places)}


def source_styles(run: RunData) -> dict[str, dict[str, Any]]:
    """Returns the line style of training and of each evaluation set, by label, as options of matplotlib's `plot`."""
    longest = max((len(curve.steps) for curve in run.training.values()), default=0)
    label = "training" if longest <= _MOST_POINTS else "training (means of windows, band: their range)"
    styles: dict[str, dict[str, Any]] = {label: {"linewidth": 1, "alpha": 0.5}} if run.training else {}
    return styles | {name: _evaluation_style(number) for number, name in enumerate(run.evaluation)}


def draw_sample(style: dict[str, Any], axes: Axes) -> None:
    """Draws a line of the given style, as in a legend."""
    axes.set_axis_off()
    axes.plot([0, 1, 2], [0, 0, 0], color=INK, markevery=[1], **style)


def svg_element(draw: Draw, label: str, size: tuple[float, float] = (4.6, 3.1)) -> str:
    """
    Returns a picture as an `<svg>` element for an HTML page. Its text stays text, and it needs no other file.

    Args:
        draw (`Callable`):
            Draws the picture on the axes that it is given.
        label (`str`):
            Description, for readers who cannot see it.
        size (`tuple[float, float]`):
            Width and height in inches. The page only uses their ratio.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=size, facecolor="none")  # the page is light or dark
        draw(figure.add_subplot())
        written = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(written, metadata=no_metadata)
    return _inline(written.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    # Removes what only a separate file needs: prologue, size, fonts, and ids that would occur in several panels
    svg = svg[svg.index("<svg") :]
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    svg = f'<svg role="img" aria-label="{escape(label)}" {view[0]}>{svg[svg.index(">") + 1 :]}'
    svg = re.sub(r'<g id="[A-Za-z0-9]+_\d+">', "<g>", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg.replace("xlink:href", "href")


def write_png(
    path: Path, title: str, described: str, panels: list[tuple[str, Draw]], styles: dict[str, dict[str, Any]]
) -> None:
    """
    Writes all panels to one picture.

    Args:
        path (`Path`):
            Where to write.
        title (`str`):
            First line of the heading.
        described (`str`):
            Second line of the heading.
        panels (`list[tuple[str, Callable]]`):
            Title of each panel, and the function that draws it.
        styles (`dict[str, dict]`):
            Line style of each entry of the legend, by label, as options of matplotlib's `plot`.
    """
    columns = min(len(panels), 3 if len(panels) < 13 else 4)
    rows = math.ceil(len(panels) / columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.6 * columns, 3.3 * rows + 1.2))
        for number, (name, draw) in enumerate(panels, start=1):
            axes = figure.add_subplot(rows, columns, number)
            draw(axes)
            axes.set_title(name)
        figure.suptitle(f"{title}\n{described}", x=0.01, ha="left", fontsize=12)
        lines = [Line2D([], [], label=label, **{"color": INK, **style}) for label, style in styles.items()]
        figure.legend(handles=lines, loc="outside lower left", ncols=6, handlelength=3)
        FigureCanvasAgg(figure).print_png(path)
