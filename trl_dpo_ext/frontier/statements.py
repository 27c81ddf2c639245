"""What a frontier shows, in sentences: differences only where they exceed two standard errors."""

import math
from collections.abc import Sequence
from itertools import combinations

from trl_dpo_ext.frontier.table import BEST_OF_N, OPTIMUM, SFT, Point, last_points


__all__ = ["at_kl", "costs", "statements"]

_KLS = (0.5, 1.0, 2.0, 4.0, 8.0)
_CLEAR = 2.0  # standard errors


def at_kl(points: Sequence[Point], kl: float) -> tuple[float, float] | None:
    """
    Reward of a method at a KL, between the ends of two of its runs, with its standard error.

    Args:
        points (`Sequence[Point]`):
            Last points of its runs.
        kl (`float`):
            KL, in nats.

    Returns:
        `tuple[float, float]`, *optional*: Reward and standard error, by linear interpolation between the nearest ends
        at a smaller and a larger KL. `None` outside of them.
    """
    below = max((point for point in points if point.kl <= kl), key=lambda point: point.kl, default=None)
    above = min((point for point in points if point.kl >= kl), key=lambda point: point.kl, default=None)
    if below is None or above is None:
        return None
    weight = 0.0 if above.kl == below.kl else (kl - below.kl) / (above.kl - below.kl)
    reward = (1 - weight) * below.reward + weight * above.reward
    se = math.hypot((1 - weight) * below.reward_se, weight * above.reward_se)
    if above is below:
        se = below.reward_se
    return reward, se


def statements(points: Sequence[Point]) -> list[str]:
    """
    Returns sentences about a frontier.

    Two methods are compared at KLs that lie between the ends of runs of both. A method is called better only if the
    difference exceeds two standard errors, which are those over prompts of both, as if independent.

    Args:
        points (`Sequence[Point]`):
            Rows of the table.
    """
    trained: dict[str, list[Point]] = {}
    for point in last_points(points):
        if point.method not in (SFT, BEST_OF_N, OPTIMUM) and math.isfinite(point.reward):
            trained.setdefault(point.method, []).append(point)
    lines = [
        f"{method}: {len(ends)} runs, which end at a reward of {_range([point.reward for point in ends], 3)} and a KL "
        f"of {_range([point.kl for point in ends], 2)} nats."
        for method, ends in trained.items()
    ]
    for (first, own), (second, others) in combinations(trained.items(), 2):
        found = [(kl, at_kl(own, kl), at_kl(others, kl)) for kl in _KLS]
        parts = [_compared(first, second, kl, a, b) for kl, a, b in found if a is not None and b is not None]
        if parts:
            lines.append(f"{first} and {second}, at equal KL: {'; '.join(parts)}.")
    lines += _over_seeds(trained)
    return lines


def _compared(first: str, second: str, kl: float, a: tuple[float, float], b: tuple[float, float]) -> str:
    difference, se = a[0] - b[0], math.hypot(a[1], b[1])
    if abs(difference) > _CLEAR * se:
        better = first if difference > 0 else second
        return f"at {kl:g} nats {better} is better by {abs(difference):.3f} +- {se:.3f}"
    return f"at {kl:g} nats they cannot be told apart ({difference:+.3f} +- {se:.3f})"


def _over_seeds(trained: dict[str, list[Point]]) -> list[str]:
    lines = []
    for method, ends in trained.items():
        by_knob: dict[str, list[float]] = {}
        for point in ends:
            by_knob.setdefault(point.knob, []).append(point.reward)
        for knob, rewards in by_knob.items():
            if len(rewards) > 1:
                at = f" with {knob}" if knob else ""
                spread = max(rewards) - min(rewards)
                lines.append(
                    f"The ends of {len(rewards)} seeds of {method}{at} differ by {spread:.3f} in reward. Standard "
                    "errors over prompts do not include it."
                )
    return lines


def _range(values: Sequence[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def costs(points: Sequence[Point]) -> list[str]:
    """
    Returns what each method needs to reach a reward that all of them reach: samples, true rewards and time.

    The reward is the smallest of the methods' best ones, of those methods that gain more than two standard errors over
    the initial policy. Of each method the run that reaches it with the fewest samples counts.

    Args:
        points (`Sequence[Point]`):
            Rows of the table.
    """
    initial = next((point for point in points if point.method == SFT), None)
    by_method: dict[str, list[Point]] = {}
    for point in points:
        if point.method not in (SFT, BEST_OF_N, OPTIMUM) and math.isfinite(point.reward):
            by_method.setdefault(point.method, []).append(point)
    best = {method: max(own, key=lambda point: point.reward) for method, own in by_method.items()}
    if initial is not None:
        best = {
            method: point
            for method, point in best.items()
            if point.reward - initial.reward > _CLEAR * math.hypot(point.reward_se, initial.reward_se)
        }
    if len(best) < 2:
        return []
    goal = min(point.reward for point in best.values())
    lines = [f"To a reward of {goal:.3f}, which all of these reach:"]
    for method in best:
        reached = [point for point in by_method[method] if point.reward >= goal]
        cheapest = min(reached, key=lambda point: (point.samples_drawn, point.wall_s))
        lines.append(
            f"{method} ({cheapest.knob or 'no knob'}, update {cheapest.update}): {cheapest.samples_drawn:,} samples, "
            f"{cheapest.reward_calls:,} true rewards, {cheapest.wall_s:.0f} s of training, at KL {cheapest.kl:.2f}."
        )
    return lines
