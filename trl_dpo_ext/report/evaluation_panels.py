"""The panels of an evaluation: reward against KL, best of N, wins over the reference, and lengths."""

from functools import partial
from typing import TYPE_CHECKING, Any

from trl_dpo_ext.report.drawing import GREY
from trl_dpo_ext.report.evaluation_results import entries_of
from trl_dpo_ext.report.panels import Panel
from trl_dpo_ext.report.policy_rows import draw_center, name_rows, styles_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["evaluation_panels", "policy_styles"]


def policy_styles(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the style of each policy and of the reference, by name, as options of matplotlib's `plot`."""
    reference = {"color": GREY, "marker": "o"}
    styles = {**styles_of(result["policies"]), result["reference"]["name"]: reference}
    return {name: {**style, "linestyle": "none"} for name, style in styles.items()}


def evaluation_panels(result: dict[str, Any]) -> list[Panel]:
    """
    Returns the panels for which an evaluation has data.

    Args:
        result (`dict`):
            Contents of the JSON file of `trl-dpo-ext evaluate`.
    """
    panels = []
    if result["rewards"]:
        panels.append(
            Panel(
                "Reward against KL",
                "Reward and KL from the reference, with standard errors. Best of N of the reference: solid at its "
                "estimated KL, dashed at the upper bound log N - (N - 1) / N.",
                "a policy below best of N at the same KL.",
                partial(_draw_frontier, result),
            )
        )
    if _best_of_n(result["reference"]):
        panels.append(
            Panel(
                "Best of N",
                "Reward of the best of N samples, an unbiased estimate from all samples.",
                "a policy that gains nothing from N has lost its diversity.",
                partial(_draw_best_of_n, result),
            )
        )
    if any(entry.get("win_over_reference") is not None for entry in result["policies"].values()):
        panels.append(
            Panel(
                "Wins over the reference",
                "Share of the pairs of samples of policy and reference to the same prompt in which the policy's has "
                "the larger reward, with 95 % intervals. Dotted: chance.",
                "an interval that contains one half.",
                partial(_draw_values, result, "win_over_reference", 0.5),
            )
        )
    panels += [
        Panel(
            "KL from the reference",
            "Nats of a whole completion, with 95 % intervals.",
            "many nats for little reward.",
            partial(_draw_values, result, "kl", 0.0),
        ),
        Panel(
            "Length",
            "Tokens of a completion, with 95 % intervals.",
            "a reward that grows with the length alone.",
            partial(_draw_values, result, "mean_length", None),
        ),
        Panel(
            "Finished completions",
            "Share of the completions that end before the limit of tokens, with 95 % intervals.",
            "a share that falls: the policy does not end its completions.",
            partial(_draw_values, result, "finished_share", None),
        ),
    ]
    return panels


def _best_of_n(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Best of N by the first reward, if there is more than one N."""
    rows = entry.get("best_of_n", [])
    own = [row for row in rows if row["selected_by"] == rows[0]["selected_by"]]
    return own if len(own) > 1 else []


def _draw_frontier(result: dict[str, Any], axes: "Axes") -> None:
    styles = policy_styles(result)
    if best := _best_of_n(result["reference"]):
        rewards = [row["reward"] for row in best]
        axes.plot([row["kl"] for row in best], rewards, color=GREY, linewidth=1.5, marker=".")
        axes.plot([row["kl_bound"] for row in best], rewards, color=GREY, linewidth=1, linestyle="--")
        for place, row in enumerate(best[1:]):
            label = str(row["n"]) if place else f"N = {row['n']}"
            at = (row["kl"], row["reward"])
            axes.annotate(label, at, (-3, 4), textcoords="offset points", ha="right", color=GREY)
    for name, entry in entries_of(result).items():
        axes.errorbar(
            entry["kl"],
            entry["reward"],
            xerr=entry["kl_se"],
            yerr=entry["reward_se"],
            markersize=6,
            capsize=2,
            **styles[name],
        )
    axes.margins(0.12)
    axes.set(xlabel="KL from the reference, nats", ylabel="reward")


def _draw_best_of_n(result: dict[str, Any], axes: "Axes") -> None:
    styles = policy_styles(result)
    for name, entry in entries_of(result).items():
        rows = _best_of_n(entry)
        numbers = [row["n"] for row in rows]
        style = {**styles[name], "linestyle": "-"}
        axes.errorbar(
            numbers, [row["reward"] for row in rows], yerr=[row["reward_se"] or 0 for row in rows], capsize=2, **style
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.set(xlabel="N", ylabel="reward of the best")


def _draw_values(result: dict[str, Any], key: str, line: float | None, axes: "Axes") -> None:
    """A value of each policy, from top to bottom, with its 95 % interval."""
    styles = policy_styles(result)
    entries = {name: entry for name, entry in entries_of(result).items() if entry.get(key) is not None}
    for place, (name, entry) in enumerate(entries.items()):
        axes.errorbar(
            entry[key], -place, xerr=1.96 * (entry[f"{key}_se"] or 0), markersize=6, capsize=2, **styles[name]
        )
    name_rows(axes, list(entries))
    if line is not None:
        draw_center(axes, line)
