"""The panels of win rates: against temperature or by policy, outcomes, and the preference for the first position."""

from functools import partial
from typing import TYPE_CHECKING, Any

from trl_dpo_ext.report.drawing import CHOSEN, GREY, REJECTED, draw_reference_line
from trl_dpo_ext.report.panels import Panel
from trl_dpo_ext.report.policy_rows import draw_center, name_rows, styles_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["entries_of_summary", "label_of", "win_rate_panels", "win_rate_styles"]

_OUTCOMES = {
    "consistent_wins": ("wins", CHOSEN),
    "ties": ("ties", "#a0aec0"),
    "flips": ("flips with the order", "#e69f00"),
    "incomplete": ("incomplete", "#e2e8f0"),
    "consistent_losses": ("losses", REJECTED),
}


def entries_of_summary(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the entry of each file of completions."""
    entries: list[dict[str, Any]] = summary.get("policies", [summary])
    return entries


def label_of(entry: dict[str, Any]) -> str:
    """Returns policy and temperature of an entry."""
    temperature = entry["temperature"]
    return entry["policy"] if temperature is None else f"{entry['policy']}, T = {temperature:g}"


def win_rate_styles(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the style of each policy, by name, as options of matplotlib's `plot`."""
    return styles_of(dict.fromkeys(entry["policy"] for entry in entries_of_summary(summary)))


def win_rate_panels(summary: dict[str, Any]) -> list[Panel]:
    """
    Returns the panels for which a summary has data.

    Args:
        summary (`dict`):
            Contents of the summary of `trl-dpo-ext win-rate`.
    """
    entries = entries_of_summary(summary)
    temperatures = {entry["temperature"] for entry in entries}
    by_temperature = None not in temperatures and len(temperatures) > 1
    panels = [
        Panel(
            "Win rate over the baseline",
            "Share of the comparisons in which the policy's completion is preferred, ties and flips counting half, "
            "with 95 % intervals clustered by prompt. Grey: if all unparsable and failed verdicts were losses, or "
            "wins. Dotted: one half.",
            "an interval that contains one half.",
            partial(_draw_by_temperature if by_temperature else _draw_by_policy, summary),
        ),
        Panel(
            "Outcomes",
            "Share of the comparisons that are won and lost in all verdicts, tied, and decided differently in another "
            "order or by another person. Incomplete: a verdict is missing or unparsable.",
            "many flips: the judge cannot tell the completions apart.",
            partial(_draw_outcomes, summary),
        ),
    ]
    if any(entry["first_position_rate"] is not None for entry in entries):
        panels.append(
            Panel(
                "Preference for the first position",
                "Share of the preferred completions that were shown first, with 95 % intervals. Dotted: one half.",
                "a judge far from one half judges positions.",
                partial(_draw_first_position, summary),
            )
        )
    return panels


def _draw_by_temperature(summary: dict[str, Any], axes: "Axes") -> None:
    for name, style in win_rate_styles(summary).items():
        own = [entry for entry in entries_of_summary(summary) if entry["policy"] == name]
        own = sorted((entry for entry in own if entry["win_rate"] is not None), key=lambda entry: entry["temperature"])
        places = [entry["temperature"] for entry in own]
        for entry in own:
            axes.plot([entry["temperature"]] * 2, entry["win_rate_bounds"], color=GREY, linewidth=5, alpha=0.35)
        axes.errorbar(places, [entry["win_rate"] for entry in own], yerr=_reach(own, "win_rate"), capsize=2, **style)
    draw_reference_line(axes, 0.5)
    axes.margins(x=0.08)
    axes.set(xlabel="temperature", ylabel="win rate")


def _draw_by_policy(summary: dict[str, Any], axes: "Axes") -> None:
    entries = [entry for entry in entries_of_summary(summary) if entry["win_rate"] is not None]
    for place, entry in enumerate(entries):
        axes.plot(entry["win_rate_bounds"], [-place] * 2, color=GREY, linewidth=5, alpha=0.35)
        style = win_rate_styles(summary)[entry["policy"]]
        axes.errorbar(entry["win_rate"], -place, xerr=_reach([entry], "win_rate"), markersize=6, capsize=2, **style)
    name_rows(axes, [label_of(entry) for entry in entries])
    draw_center(axes, 0.5)
    axes.set(xlabel="win rate")


def _draw_outcomes(summary: dict[str, Any], axes: "Axes") -> None:
    entries = entries_of_summary(summary)
    for place, entry in enumerate(entries):
        left = 0.0
        for outcome, (_, color) in _OUTCOMES.items():
            share = entry[outcome] / entry["num_items"]
            axes.barh(-place, share, left=left, color=color, height=0.6)
            left += share
    name_rows(axes, [label_of(entry) for entry in entries])
    axes.set(xlabel="share of the comparisons", xlim=(0, 1))
    axes.grid(axis="y", visible=False)
    for outcome, (label, color) in _OUTCOMES.items():
        if any(entry[outcome] for entry in entries):
            axes.barh(0, 0, color=color, label=label)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=3, handlelength=0.8, borderaxespad=0)


def _draw_first_position(summary: dict[str, Any], axes: "Axes") -> None:
    entries = [entry for entry in entries_of_summary(summary) if entry["first_position_rate"] is not None]
    for place, entry in enumerate(entries):
        style = win_rate_styles(summary)[entry["policy"]]
        reach = _reach([entry], "first_position_rate")
        axes.errorbar(entry["first_position_rate"], -place, xerr=reach, markersize=6, capsize=2, **style)
    name_rows(axes, [label_of(entry) for entry in entries])
    draw_center(axes, 0.5)
    axes.set(xlabel="first position preferred", xlim=(0, 1))


def _reach(entries: list[dict[str, Any]], key: str) -> list[list[float]]:
    """Distances to the ends of the intervals."""
    ends = ("low", "high")
    return [
        [0.0 if entry[f"{key}_{end}"] is None else abs(entry[f"{key}_{end}"] - entry[key]) for entry in entries]
        for end in ends
    ]
