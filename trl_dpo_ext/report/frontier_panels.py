"""The panels of a frontier: reward against KL, and what it costs in samples, rewards and time."""

import csv
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_dpo_ext.report.drawing import GREY, INK, draw_reference_line
from trl_dpo_ext.report.panels import Panel
from trl_dpo_ext.report.policy_rows import styles_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["frontier_panels", "legend_styles", "read_rows"]

# Of the initial policy alone
_SFT, _BEST_OF_N, _OPTIMUM = "SFT", "Best of N", "Optimum (estimate)"
_INITIAL_STYLES: dict[str, dict[str, Any]] = {
    _SFT: {"color": INK, "marker": "D", "linestyle": "none"},
    _BEST_OF_N: {"color": GREY, "marker": ".", "linewidth": 1.5},
    _OPTIMUM: {"color": INK, "linewidth": 2},
}
_NUMBERS = ("reward", "reward_se", "kl", "kl_se", "kl_k1", "new_words", "wall_s", "samples_drawn", "reward_calls")
Row = dict[str, Any]


def read_rows(table: Path) -> list[Row]:
    """Returns the rows of `frontier.csv`. An empty cell is NaN."""
    with table.open(encoding="utf-8", newline="") as file:
        rows: list[Row] = list(csv.DictReader(file))
    for row in rows:
        row |= {name: float(row[name] or "nan") for name in _NUMBERS} | {"update": int(row["update"])}
    return rows


def legend_styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Returns the style of everything that is drawn, by name, as options of matplotlib's `plot`."""
    return _method_styles(rows) | _INITIAL_STYLES


def _method_styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    return styles_of(dict.fromkeys(row["method"] for row in _of_runs(rows)))


def frontier_panels(rows: Sequence[Row]) -> list[Panel]:
    """
    Returns the panels.

    Args:
        rows (`Sequence[Row]`):
            Result of [`read_rows`].
    """
    return [
        Panel(
            "Reward against KL",
            "Ends of runs with standard errors of reward and KL, joined in the order of the KL. Best of N of the "
            "initial policy: solid grey at its estimated KL, dashed at the upper bound log N - (N - 1) / N. Black: "
            "the optimum of Eq. 3, estimated from samples of the initial policy.",
            "a method below another at the same KL, by more than the bars.",
            partial(_draw_frontier, rows),
        ),
        Panel(
            "Reward during training",
            "All evaluations of all runs, joined in the order of training.",
            "a curve that turns down: KL is spent without reward.",
            partial(_draw_paths, rows),
        ),
        Panel(
            "Reward against samples",
            "Completions that were sampled for training. Methods on pairs use the samples that all share. Dotted: the "
            "initial policy.",
            "many samples for the same reward.",
            partial(_draw_cost, rows, "samples_drawn", "samples"),
        ),
        Panel(
            "Reward against true rewards",
            "Completions that were given a true reward for training. Dotted: the initial policy.",
            "many true rewards, which are people's time, for the same reward.",
            partial(_draw_cost, rows, "reward_calls", "true rewards"),
        ),
        Panel(
            "Reward against time",
            "Seconds of training, without evaluations and without what the runs share. Dotted: the initial policy.",
            "much time for the same reward.",
            partial(_draw_cost, rows, "wall_s", "seconds"),
        ),
        Panel(
            "New words",
            "Share of the words of completions that are neither in the texts nor in samples of the initial policy, at "
            "the ends of runs.",
            "invented words: the policy has left the language.",
            partial(_draw_new_words, rows),
        ),
    ]


def _of_runs(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["method"] not in (_SFT, _BEST_OF_N, _OPTIMUM) and math.isfinite(row["reward"])]


def _runs(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows of each run, in the order of training."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(_of_runs(rows), key=lambda row: row["update"]):
        found.setdefault((row["method"], row["knob"], row["seed"]), []).append(row)
    return found


def _draw_frontier(rows: Sequence[Row], axes: "Axes") -> None:
    best = [row for row in rows if row["method"] == _BEST_OF_N]
    axes.plot([row["kl"] for row in best], [row["reward"] for row in best], **_INITIAL_STYLES[_BEST_OF_N])
    axes.plot([row["kl_k1"] for row in best], [row["reward"] for row in best], color=GREY, linewidth=1, linestyle="--")
    optimum = [row for row in rows if row["method"] == _OPTIMUM]
    axes.plot([row["kl"] for row in optimum], [row["reward"] for row in optimum], **_INITIAL_STYLES[_OPTIMUM])
    ends = [own[-1] for own in _runs(rows).values()]
    for method, style in _method_styles(rows).items():
        own = sorted((row for row in ends if row["method"] == method), key=lambda row: row["kl"])
        axes.errorbar(
            [row["kl"] for row in own],
            [row["reward"] for row in own],
            xerr=[row["kl_se"] for row in own],
            yerr=[row["reward_se"] for row in own],
            markersize=5,
            capsize=2,
            linewidth=1,
            **style,
        )
    _draw_initial(rows, axes)
    _kl_axis(axes)
    axes.set(ylabel="true reward")


def _draw_paths(rows: Sequence[Row], axes: "Axes") -> None:
    initial = [row for row in rows if row["method"] == _SFT]
    for (method, _, _), own in _runs(rows).items():
        path = [*initial, *own]
        style = _method_styles(rows)[method]
        axes.plot(
            [row["kl"] for row in path], [row["reward"] for row in path], markersize=3, linewidth=1, alpha=0.7, **style
        )
    _kl_axis(axes)
    axes.set(ylabel="true reward")


def _draw_cost(rows: Sequence[Row], column: str, label: str, axes: "Axes") -> None:
    for (method, _, _), own in _runs(rows).items():
        places, rewards = [row[column] for row in own], [row["reward"] for row in own]
        axes.plot(places, rewards, markersize=3, linewidth=1, alpha=0.7, **_method_styles(rows)[method])
    for row in rows:
        if row["method"] == _SFT:
            draw_reference_line(axes, row["reward"])
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.set(xlabel=label, ylabel="true reward")


def _draw_new_words(rows: Sequence[Row], axes: "Axes") -> None:
    for own in _runs(rows).values():
        style = _method_styles(rows)[own[-1]["method"]]
        axes.plot(own[-1]["kl"], own[-1]["new_words"], markersize=5, **{**style, "linestyle": "none"})
    _kl_axis(axes)
    axes.set(ylabel="share of new words")


def _draw_initial(rows: Sequence[Row], axes: "Axes") -> None:
    for row in rows:
        if row["method"] == _SFT:
            axes.errorbar(0, row["reward"], yerr=row["reward_se"], markersize=5, capsize=2, **_INITIAL_STYLES[_SFT])


def _kl_axis(axes: "Axes") -> None:
    """Linear up to 1 nat, then logarithmic, because KLs differ by orders of magnitude."""
    axes.set_xscale("symlog", linthresh=1)
    low, high = axes.get_xlim()
    ticks = [tick for tick in (0, 0.5, 1, 2, 5, 10, 20, 50, 100) if tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(min(low, -0.02), high)
    axes.minorticks_off()
    axes.set(xlabel="KL from the initial policy, nats")
