"""The panels of a run: its curves, its rewards by rank and its distributions, with how to read them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from trl_dpo_ext.report.curve_panels import CURVE_PANELS
from trl_dpo_ext.report.drawing import (
    ANSWERS,
    CHOSEN,
    GREY,
    INK,
    SECOND,
    draw_key,
    draw_reference_line,
    draw_update_axis,
    rank_colors,
    window_means,
)
from trl_dpo_ext.report.run_data import Curve, Distribution, RunData


if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["Panel", "panels_of", "quantile"]


_POINTS_OF_PATH = 20


@dataclass(frozen=True)
class Panel:
    """
    A panel that can be drawn.

    Args:
        title (`str`): Title.
        reading (`str`): How to read it.
        bad_sign (`str`): What to look out for.
        draw (`Callable`): Draws it on the axes that it is given.
    """

    title: str
    reading: str
    bad_sign: str
    draw: Callable[["Axes"], None]


def panels_of(run: RunData) -> list[Panel]:
    """
    Returns the panels for which the run has data, in the order of the page.

    Args:
        run ([`~trl_dpo_ext.report.run_data.RunData`]):
            The run.
    """
    panels = [
        Panel(curves.title, curves.reading, curves.bad_sign, partial(curves.draw, run))
        for curves in CURVE_PANELS
        if curves.is_for(run)
    ]
    special = _reward_against_kl(run)
    special += [panel for where in ("training", *run.evaluation) for panel in _rank_panels(run, where)]
    for where, distributions in run.distributions.items():
        last = {name: by_step[-1] for name, by_step in distributions.items()}
        special += _reward_histograms(where, last) + _margin_histogram(where, last) + _reliability(where, last)
        special += _margin_spread(where, distributions)
    return panels + special


def _reward_against_kl(run: RunData) -> list[Panel]:
    # Of training batches: evaluations are few
    names = ("kl_sequence", "reward")
    kls, rewards = (dict(run.training[name].finite()) if name in run.training else {} for name in names)
    steps = [step for step in kls if step in rewards]
    if not steps:
        return []
    return [
        Panel(
            "Reward against KL",
            "What the policy gains for its distance from the reference, as means of windows; the dot is the last one. "
            "The higher at the same KL, the better the run.",
            "the path turns right: more KL for the same reward.",
            partial(_draw_path, [Curve(steps, [values[step] for step in steps]) for values in (kls, rewards)]),
        )
    ]


def _draw_path(curves: list[Curve], axes: "Axes") -> None:
    across, up = ([mean for _, mean, _, _ in window_means(curve, _POINTS_OF_PATH)] for curve in curves)
    axes.plot(across, up, color=INK, linewidth=1, alpha=0.5, marker=".")
    axes.plot(across[-1:], up[-1:], "o", color=INK, markersize=8)
    axes.set(xlabel="KL, nats per completion", ylabel="reward")


def _rank_panels(run: RunData, where: str) -> list[Panel]:
    # Training batches only without an evaluation: their curves are the same, with more noise
    names = run.training if where == "training" else run.evaluation[where]
    ranks = {name: curve for name, curve in names.items() if name.startswith("rewards/rank_") and curve.finite()}
    if not ranks or (where == "training" and run.evaluation):
        return []
    return [
        Panel(
            f"Reward by rank, {where}",
            "Mean implicit reward of each rank, 1 the best. The lines should move apart in this order.",
            "neighboring lines cross or stay together: the policy does not distinguish these ranks.",
            partial(_draw_ranks, ranks),
        )
    ]


def _draw_ranks(ranks: dict[str, Curve], axes: "Axes") -> None:
    places = sorted(int(name.rpartition("_")[2]) for name in ranks)
    colors = rank_colors(places[-1])
    draw_reference_line(axes, 0)
    for place in places:
        points = ranks[f"rewards/rank_{place}"].finite()
        marker = "o" if len(points) <= 20 else ""
        axes.plot(*zip(*points, strict=True), color=colors[str(place)], linewidth=2, marker=marker, markersize=4)
    draw_key(axes, {f"rank {place}" if place == 1 else str(place): colors[str(place)] for place in places})
    draw_update_axis(axes, "reward")


def _reward_histograms(where: str, last: dict[str, Distribution]) -> list[Panel]:
    both = {name: last[f"rewards/{name}"] for name in ("chosen", "rejected") if f"rewards/{name}" in last}
    if not both:
        return []
    return [
        Panel(
            f"Rewards, {where} at update {max(one.step for one in both.values()):,}",
            "Implicit rewards of chosen and rejected completions. The two histograms should move apart.",
            "both lie left of 0, or they overlap.",
            partial(_draw_reward_histograms, both),
        )
    ]


def _draw_reward_histograms(both: dict[str, Distribution], axes: "Axes") -> None:
    for name, _, color in ANSWERS:
        if name in both:
            _draw_histogram(axes, both[name], color)
    draw_key(axes, {label: color for name, label, color in ANSWERS if name in both})
    axes.set(xlabel="implicit reward", ylabel="completions")


def _draw_histogram(axes: "Axes", distribution: Distribution, color: str) -> None:
    axes.stairs(distribution.counts, distribution.edges, fill=True, color=color, alpha=0.2)
    axes.stairs(distribution.counts, distribution.edges, color=color, linewidth=1.5)


def _margin_histogram(where: str, last: dict[str, Distribution]) -> list[Panel]:
    if "rewards/margins" not in last:
        return []
    return [
        Panel(
            f"Margins, {where} at update {last['rewards/margins'].step:,}",
            "Reward margin of each pair (ranking: best minus worst). Pairs right of 0 are in the right order.",
            "a long tail left of 0: pairs with a wrong label, or on which the policy is confident and wrong.",
            partial(_draw_margin_histogram, last["rewards/margins"]),
        )
    ]


def _draw_margin_histogram(margins: Distribution, axes: "Axes") -> None:
    _draw_histogram(axes, margins, INK)
    axes.axvline(0, color=GREY, linewidth=1.2, linestyle=":")
    axes.axvline(quantile(margins, 0.5), color=SECOND, linewidth=2)
    draw_key(axes, {"median": SECOND})
    axes.set(xlabel="reward margin", ylabel="pairs")


def _margin_spread(where: str, distributions: dict[str, list[Distribution]]) -> list[Panel]:
    margins = [margins for margins in distributions.get("rewards/margins", []) if sum(margins.counts)]
    if len(margins) < 3:
        return []
    return [
        Panel(
            f"Spread of margins, {where}",
            "Median of the reward margin (line), and where the middle 50 % and 90 % of the pairs lie (bands).",
            "the lower edge falls as fast as the upper one rises: some pairs are learned at the expense of others.",
            partial(_draw_margin_spread, margins),
        )
    ]


def _draw_margin_spread(margins: list[Distribution], axes: "Axes") -> None:
    steps = [one.step for one in margins]
    for low, high, alpha in ((0.05, 0.95, 0.15), (0.25, 0.75, 0.25)):
        lower, upper = ([quantile(one, share) for one in margins] for share in (low, high))
        axes.fill_between(steps, lower, upper, color=CHOSEN, alpha=alpha, linewidth=0)
    axes.plot(steps, [quantile(one, 0.5) for one in margins], color=CHOSEN, linewidth=2)
    draw_reference_line(axes, 0)
    draw_update_axis(axes, "reward margin")


def quantile(distribution: Distribution, share: float) -> float:
    """
    Returns the value below which a share of a histogram lies. Within a bin, examples count as evenly spread.

    Args:
        distribution ([`~trl_dpo_ext.report.run_data.Distribution`]):
            Histogram that is not empty.
        share (`float`):
            Between 0 and 1.

    Example:
    ```python
    >>> from trl_dpo_ext.report.panels import quantile
    >>> from trl_dpo_ext.report.run_data import Distribution

    >>> quantile(Distribution(step=1, edges=[0.0, 1.0, 2.0], counts=[3, 1]), 0.5)
    0.6666666666666666

    ```
    """
    wanted = share * sum(distribution.counts)
    for low, high, count in zip(distribution.edges, distribution.edges[1:], distribution.counts, strict=False):
        if count and wanted <= count:
            return low + (high - low) * wanted / count
        wanted -= count
    return distribution.edges[-1]


def _reliability(where: str, last: dict[str, Distribution]) -> list[Panel]:
    if "rewards/calibration" not in last:
        return []
    calibration = last["rewards/calibration"]
    bins = zip(calibration.confidence, calibration.accuracy, calibration.counts, strict=False)
    filled = [(x, y, count) for x, y, count in bins if count and x is not None and y is not None]
    if not filled:
        return []
    return [
        Panel(
            f"Reliability, {where} at update {calibration.step:,}",
            "How often an order is right, by the probability that the rewards give to it. Bars are standard errors, "
            "and the area of a dot is its share of the pairs.",
            "dots below the diagonal: the rewards are overconfident.",
            partial(_draw_reliability, filled),
        )
    ]


def _draw_reliability(filled: list[tuple[float, float, float]], axes: "Axes") -> None:
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1.2, linestyle=":")
    confidence, accuracy, counts = zip(*filled, strict=True)
    # Agresti and Coull: two more right and two more wrong, so that a few pairs that agree still have an error
    moderate = [((y * n + 2) / (n + 4), n + 4) for y, n in zip(accuracy, counts, strict=True)]
    errors = [(share * (1 - share) / n) ** 0.5 for share, n in moderate]
    axes.errorbar(confidence, accuracy, yerr=errors, color=CHOSEN, linewidth=1, elinewidth=1)
    axes.scatter(confidence, accuracy, [20 + 300 * n / sum(counts) for n in counts], color=CHOSEN, alpha=0.8, zorder=3)
    axes.set(xlim=(0.48, 1.02), ylim=(-0.02, 1.06), xlabel="implied probability", ylabel="share in the right order")
