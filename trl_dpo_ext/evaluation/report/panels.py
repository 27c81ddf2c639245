"""The panels of the report: what is drawn of which figures, and how to read it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from trl_dpo_ext.evaluation.report.drawing import (
    CHOSEN,
    GREY,
    INK,
    REJECTED,
    SECOND,
    draw_curves,
    draw_key,
    draw_reference_line,
    draw_update_axis,
    rank_colors,
)
from trl_dpo_ext.evaluation.report.run_data import Curve, Distribution, RunData


if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["Panel", "panels_of", "quantile"]


@dataclass(frozen=True)
class Panel:
    """
    A panel that can be drawn.

    Args:
        title (`str`): What it shows.
        reading (`str`): How to read it.
        bad_sign (`str`): What to look out for.
        draw (`Callable`): Draws it on the axes that it is given.
    """

    title: str
    reading: str
    bad_sign: str
    draw: Callable[["Axes"], None]


@dataclass(frozen=True)
class _Curves:
    """
    Figures that share an axis against the update.

    Args:
        figures (`dict[str, tuple[str, str]]`): Label and colour by name; the first decides whether there is a panel.
        level (`float`, *optional*): Where to draw a dotted line.
        limits (`tuple`, *optional*): Ends of the value axis.
        instead_of (`str`, *optional*): Figure that makes this panel needless.
    """

    title: str
    figures: dict[str, tuple[str, str]]
    ylabel: str
    reading: str
    bad_sign: str
    level: float | None = None
    limits: tuple[float, float] | None = None
    instead_of: str = ""

    def draw(self, run: RunData, axes: "Axes") -> None:
        if self.level is not None:
            draw_reference_line(axes, self.level)
        draw_curves(axes, run, self.figures, self.ylabel)
        if self.limits is not None:
            axes.set_ylim(self.limits)


_BOTH = (("chosen", "preferred", CHOSEN), ("rejected", "dispreferred", REJECTED))
_SHARE = (-0.02, 1.02)

_CURVES = (
    _Curves(
        "Loss",
        {"loss": ("loss", INK)},
        "nats",
        "Should fall, in training and in evaluation. DPO starts at log 2 = 0.69, a ranking of K answers at log K!.",
        "evaluation rises while training falls (overfitting).",
    ),
    _Curves(
        "Pairs in the right order",
        {
            "rewards/accuracies": ("implicit reward", INK),
            "rewards/accuracies_from_length": ("rule: the longer answer", REJECTED),
        },
        "share of pairs",
        "Share of the pairs whose preferred answer has the larger implicit reward; dotted: chance.",
        "no better than the rule that the longer answer is preferred: the policy may have learnt length alone.",
        level=0.5,
    ),
    _Curves(
        "Reward margin",
        {"rewards/margins": ("margin", INK)},
        "reward",
        "Implicit reward of the preferred answer minus that of the dispreferred one; it should grow.",
        "it grows while the share in the right order stands still: the policy only becomes surer.",
        level=0,
    ),
    _Curves(
        "Implicit rewards",
        {f"rewards/{name}": (label, color) for name, label, color in _BOTH},
        "reward",
        "beta log(policy/reference) of either answer, 0 at the start; the lines should part.",
        "both fall together: the policy moves away from all answers of the data.",
        level=0,
    ),
    _Curves(
        "Drift from the reference",
        {f"logps/{name}_drift": (label, color) for name, label, color in _BOTH},
        "nats",
        "log(policy/reference), summed over an answer's tokens: above 0 it became likelier than at the start.",
        "preferred answers fall for long (likelihood displacement): probability goes to answers that are in no pair.",
        level=0,
    ),
    _Curves(
        "Log-probability of answers",
        {f"logps/{name}": (label, color) for name, label, color in _BOTH},
        "nats",
        "Log-probability under the policy, summed over an answer's tokens.",
        "preferred answers fall for long: probability goes to answers that are not in the data.",
        instead_of="logps/chosen_drift",
    ),
    _Curves(
        "KL from the reference",
        {"kl_per_token": ("KL", INK)},
        "nats per token",
        "Estimate, on the answers of the data, of how far the policy is from its reference.",
        "it keeps growing while the share in the right order stands still: distance without a gain.",
        level=0,
    ),
    _Curves(
        "Weight of a pair in the gradient",
        {
            "rewards/gradient_weight": ("mean weight", INK),
            "rewards/gradient_weight_near_0": ("share of pairs below 0.05", REJECTED),
        },
        "weight, share",
        "Mean of sigmoid(dispreferred - preferred reward), the weight of a pair in DPO's gradient; 0.5 at first.",
        "the share near 0 approaches 1: there is nothing left to learn from these pairs.",
        limits=_SHARE,
    ),
    _Curves(
        "Reward and length",
        {"rewards/length_correlation": ("correlation", INK)},
        "correlation",
        "Correlation of implicit reward and length among the answers of a prompt; dotted: none.",
        "close to 1: the reward counts tokens.",
        level=0,
        limits=(-1.05, 1.05),
    ),
    _Curves(
        "Calibration error",
        {"rewards/calibration_error": ("error", INK)},
        "probability",
        "Expected gap between the probability that the rewards give to an order and how often it is right; 0 is best.",
        "it grows while the share in the right order stands still: surer than right.",
        level=0,
    ),
    _Curves(
        "Rank correlation",
        {"rewards/kendall_tau": ("tau", INK)},
        "Kendall's tau-b",
        "Agreement of the order by implicit reward with the order observed: 1 the same, 0 none, -1 reversed.",
        "evaluation stands still or falls while training rises (overfitting).",
        level=0,
    ),
    _Curves(
        "Rankings",
        {
            "rewards/top1_accuracies": ("best on top", INK),
            "rewards/order_probabilities": ("probability of the order", REJECTED),
        },
        "share of rankings, probability",
        "How often the best answer has the largest reward, and the mean probability of the order observed (Eq. 20).",
        "the top does not improve while other figures do: only the low ranks are learnt.",
        limits=_SHARE,
    ),
    _Curves(
        "Tokens predicted",
        {"mean_token_accuracy": ("accuracy", INK)},
        "share of tokens",
        "Share of the tokens of preferred answers that are the policy's first choice.",
        "it falls for long: the policy forgets how to write preferred answers.",
    ),
    _Curves(
        "Entropy",
        {"entropy": ("entropy", INK)},
        "nats per token",
        "How open the policy's choice of the next token is.",
        "it collapses towards 0 (the policy repeats itself) or climbs without end (it becomes noise).",
    ),
    _Curves(
        "Gradient norm",
        {"grad_norm": ("norm", INK)},
        "norm before clipping",
        "Length of the gradient of an update.",
        "spikes, or growth without end: lower the learning rate.",
    ),
    _Curves(
        "Learning rate",
        {"learning_rate": ("rate", INK)},
        "per update",
        "The schedule: warm-up, then constant or falling.",
        "the run ends while it still warms up.",
    ),
)


def panels_of(run: RunData) -> list[Panel]:
    """
    Returns the panels for which the run has figures, in the order of the page.

    Args:
        run ([`~trl_dpo_ext.evaluation.report.run_data.RunData`]):
            The run.
    """
    panels = [
        Panel(curves.title, curves.reading, curves.bad_sign, partial(curves.draw, run))
        for curves in _CURVES
        if run.curves(next(iter(curves.figures))) and not run.curves(curves.instead_of)
    ]
    special = [panel for where in ("training", *run.evaluation) for panel in _rank_panels(run, where)]
    for where, distributions in run.distributions.items():
        last = {name: by_step[-1] for name, by_step in distributions.items()}
        special += _reward_histograms(where, last) + _margin_histogram(where, last) + _reliability(where, last)
        special += _margin_spread(where, distributions)
    return panels + special


def _rank_panels(run: RunData, where: str) -> list[Panel]:
    # Training batches only where there is no evaluation: it has the same shape and more noise
    names = run.training if where == "training" else run.evaluation[where]
    ranks = {name: curve for name, curve in names.items() if name.startswith("rewards/rank_") and curve.finite()}
    if not ranks or (where == "training" and run.evaluation):
        return []
    return [
        Panel(
            f"Reward by rank, {where}",
            "Mean implicit reward of the answers of each rank, 1 the best; the lines should fan out in this order.",
            "neighbours cross or stay together: the policy does not tell these ranks apart.",
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
            "Implicit rewards of preferred and dispreferred answers; they should come apart.",
            "both lie left of 0, or one on top of the other.",
            partial(_draw_reward_histograms, both),
        )
    ]


def _draw_reward_histograms(both: dict[str, Distribution], axes: "Axes") -> None:
    for name, _, color in _BOTH:
        if name in both:
            _draw_histogram(axes, both[name], color)
    draw_key(axes, {label: color for name, label, color in _BOTH if name in both})
    axes.set(xlabel="implicit reward", ylabel="answers")


def _draw_histogram(axes: "Axes", distribution: Distribution, color: str) -> None:
    axes.stairs(distribution.counts, distribution.edges, fill=True, color=color, alpha=0.2)
    axes.stairs(distribution.counts, distribution.edges, color=color, linewidth=1.5)


def _margin_histogram(where: str, last: dict[str, Distribution]) -> list[Panel]:
    if "rewards/margins" not in last:
        return []
    return [
        Panel(
            f"Margins, {where} at update {last['rewards/margins'].step:,}",
            "Reward margin of each pair (ranking: best and worst answer): right of 0 in the right order.",
            "a long tail left of 0: pairs with a wrong label, or whose order the policy gets surely wrong.",
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
            "the lower edge falls as fast as the upper one rises: some pairs are learnt at the cost of others.",
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
    Returns the value below which a share of a histogram lies, taking a bin's examples as evenly spread.

    Args:
        distribution ([`~trl_dpo_ext.evaluation.report.run_data.Distribution`]):
            Histogram that is not empty.
        share (`float`):
            Between 0 and 1.

    Example:
    ```python
    >>> from trl_dpo_ext.evaluation.report.panels import quantile
    >>> from trl_dpo_ext.evaluation.report.run_data import Distribution

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
            "How often an order is right, by the probability that the rewards give to it; bars: standard errors, area "
            "of a dot: its share of the pairs.",
            "dots below the diagonal: surer than right.",
            partial(_draw_reliability, filled),
        )
    ]


def _draw_reliability(filled: list[tuple[float, float, float]], axes: "Axes") -> None:
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1.2, linestyle=":")
    confidence, accuracy, counts = zip(*filled, strict=True)
    # Agresti and Coull's: two more right and two more wrong, so that a few pairs of one kind are not taken for sure
    moderate = [((y * n + 2) / (n + 4), n + 4) for y, n in zip(accuracy, counts, strict=True)]
    errors = [(share * (1 - share) / n) ** 0.5 for share, n in moderate]
    axes.errorbar(confidence, accuracy, yerr=errors, color=CHOSEN, linewidth=1, elinewidth=1)
    axes.scatter(confidence, accuracy, [20 + 300 * n / sum(counts) for n in counts], color=CHOSEN, alpha=0.8, zorder=3)
    axes.set(xlim=(0.48, 1.02), ylim=(-0.02, 1.06), xlabel="implied probability", ylabel="share in the right order")
