"""Tables and figures of `human_ratings.py`: agreement with rankings, and reward against KL."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from trl_dpo_ext.evaluation import kendall_tau, preference_accuracy, preference_calibration
from trl_dpo_ext.quickstart.training_curves import BLUE, GREY, INK, ORANGE


BASE, REFERENCE, RANKINGS, PAIRS = "SmolLM2-Instruct", "Preferred-FT", "DPO on rankings", "DPO on pairs"
RULES, CRITICS = "VADER's rules", "critics' classifier"
GREEN = "#2f855a"
COLORS = {BASE: INK, REFERENCE: GREY, RANKINGS: BLUE, PAIRS: ORANGE, RULES: GREEN, CRITICS: GREEN}
METRICS = ("preference_accuracy", "kendall_tau", "calibration_error")
BINS = 5
Rewards = list[list[float]]
Interval = list[float]  # estimate, and the bounds of its 95 % interval


# Agreement with rankings


@dataclass
class Calibration:
    """Calibration curve: mean probability of the more probable order, and how often this order is the right one."""

    confidence: list[float]
    accuracy: list[Interval]


@dataclass
class Agreement:
    """
    Agreement of rewards with human rankings, with 95 % intervals: percentiles of a bootstrap over rankings.

    Args:
        metrics (`dict[str, dict[str, Interval]]`): Metrics by name of the rewards.
        difference (`dict[str, Interval]`): Metrics of DPO on rankings minus those of DPO on pairs.
        calibrations (`dict[str, Calibration]`): Calibration of the implicit rewards.
    """

    metrics: dict[str, dict[str, Interval]]
    difference: dict[str, Interval]
    calibrations: dict[str, Calibration]

    @classmethod
    def of(cls, rewards: dict[str, Rewards], ranks: list[list[int]], *, num_resamples: int, seed: int) -> "Agreement":
        """Compares rewards of the completions of every row with their ranks."""
        chance = np.random.default_rng(seed)
        resamples = [np.arange(len(ranks)), *chance.integers(len(ranks), size=(num_resamples, len(ranks)))]
        all_ranks = np.array(ranks)
        values: dict[str, dict[str, np.ndarray]] = {}
        calibrations = {}
        for name, of_name in rewards.items():
            drawn = [(np.array(of_name)[rows], all_ranks[rows]) for rows in resamples]
            values[name] = {
                "preference_accuracy": _of_each(
                    drawn, lambda *given: preference_accuracy(*given)["preference_accuracy"]
                ),
                "kendall_tau": _of_each(drawn, lambda *given: kendall_tau(*given)["kendall_tau"]),
            }
            if name in (RANKINGS, PAIRS):
                curves = [preference_calibration(*given, bins=BINS) for given in drawn]
                values[name]["calibration_error"] = np.array([curve["calibration_error"] for curve in curves])
                accuracies = np.array([curve["accuracy"] for curve in curves])  # (1 + resamples, BINS)
                calibrations[name] = Calibration(curves[0]["confidence"], list(map(_interval, accuracies.T)))
        return cls(
            metrics={
                name: {key: _interval(of_key) for key, of_key in found.items()} for name, found in values.items()
            },
            difference={key: _interval(values[RANKINGS][key] - values[PAIRS][key]) for key in METRICS},
            calibrations=calibrations,
        )


def _of_each(drawn: list[tuple[np.ndarray, np.ndarray]], metric: Callable[..., float]) -> np.ndarray:
    return np.array([metric(*given) for given in drawn])


def _interval(values: np.ndarray) -> Interval:
    """Interval of an estimate, `values[0]`, by its values on resampled rows, which may be NaN where a bin is empty."""
    if np.isnan(values[0]):
        return [float("nan")] * 3
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return [float(values[0]), float(low), float(high)]


def print_agreement(agreement: Agreement) -> None:
    """Prints the metrics, with their intervals."""
    print(f"{'':34}{'accuracy':>24}{'Kendall tau':>24}{'calibration error':>24}")
    for name, metrics in (agreement.metrics | {"rankings - pairs": agreement.difference}).items():
        sign = "+" if metrics is agreement.difference else ""
        cells = (f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]" for mean, low, high in metrics.values())
        print(f"{name:34}" + "".join(f"{cell:>24}" for cell in cells))


def draw_agreement(path: Path, agreement: Agreement) -> None:
    """Draws accuracy and Kendall's tau with their intervals, and the calibration of the implicit rewards."""
    figure, (accuracy, tau, calibration) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    names = list(agreement.metrics)
    for axis, key, chance in ((accuracy, "preference_accuracy", 0.5), (tau, "kendall_tau", 0.0)):
        axis.axvline(chance, color=GREY, linewidth=1, linestyle=":")
        for place, name in enumerate(names):
            mean, low, high = agreement.metrics[name][key]
            _draw_point(axis, mean, place, COLORS[_model_of(name)], xerr=[[mean - low], [high - mean]])
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_yticks(range(len(names)), names if axis is accuracy else [""] * len(names))
    accuracy.set(title="Pairs in the right order", xlabel="share")
    tau.set(title="Kendall's tau with the human ranking", xlabel="tau")

    calibration.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1, linestyle=":")
    for name, curve in agreement.calibrations.items():
        points = [(x, *of_bin) for x, of_bin in zip(curve.confidence, curve.accuracy, strict=True) if x == x]
        x, y, low, high = np.array(points).T
        calibration.errorbar(
            x, y, yerr=[y - low, high - y], color=COLORS[name], marker="o", markersize=4, capsize=2, label=name
        )
    calibration.set(
        title="Calibration of the implicit reward", xlabel="probability of the order", ylabel="share in this order"
    )
    calibration.legend(frameon=False, loc="lower right")
    _finish(figure, path)


# Reviews


def print_evaluations(evaluations: dict[str, dict[str, Any]], num_samples: int = 3) -> None:
    """Prints rewards and KL with standard errors, and samples."""
    judges = list(next(iter(evaluations.values()))["summary"]["rewards"])
    columns = (*judges, "wins over reference", "KL, nats", "tokens", "finished")
    print(f"{'':18}" + "".join(f"{column:>22}" for column in columns))
    for name, evaluation in evaluations.items():
        summary = evaluation["summary"]
        cells = [
            *(_with_se(summary["rewards"][judge], "reward") for judge in judges),
            _with_se(summary, "win_over_reference"),
            _with_se(summary, "kl"),
            f"{summary['mean_length']:.1f}",
            f"{summary['finished_share']:.0%}",
        ]
        print(f"{name:18}" + "".join(f"{cell:>22}" for cell in cells))
    for judge, (mean, se) in reward_differences(evaluations).items():
        print(f"rankings - pairs, {judge}: {mean:+.3f} +- {se:.3f}")
    for name, evaluation in evaluations.items():
        print(f"\n{name}:")
        for text in evaluation["samples"][:num_samples]:
            print(textwrap.fill(text, 110, initial_indent="  - ", subsequent_indent="    "))


def reward_differences(evaluations: dict[str, dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Mean difference in reward of DPO on rankings and on pairs over instructions, with its standard error."""
    rankings, pairs = (evaluations[name]["rewards_by_prompt"] for name in (RANKINGS, PAIRS))
    found = {}
    for judge, of_rankings in rankings.items():
        differences = np.array(of_rankings) - np.array(pairs[judge])
        found[judge] = (float(differences.mean()), float(differences.std(ddof=1) / len(differences) ** 0.5))
    return found


def draw_reward_against_kl(path: Path, evaluations: dict[str, dict[str, Any]]) -> None:
    """Draws the reward by each judge against the KL from the reference, with standard errors."""
    judges = list(next(iter(evaluations.values()))["summary"]["rewards"])
    figure, axes = plt.subplots(1, len(judges), figsize=(11, 4.2), layout="constrained")
    for axis, judge in zip(axes, judges, strict=True):
        for name, evaluation in evaluations.items():
            summary = evaluation["summary"]
            reward = summary["rewards"][judge]
            errors = {"xerr": summary["kl_se"], "yerr": reward["reward_se"]}
            _draw_point(axis, summary["kl"], reward["reward"], COLORS[name], label=name, **errors)
        axis.set(title=f"Reward by {judge}", xlabel="KL from Preferred-FT, nats", ylabel="mean reward")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    _finish(figure, path)


def _model_of(name: str) -> str:
    return next(known for known in COLORS if name.startswith(known))


def _with_se(summary: dict[str, float], name: str) -> str:
    if summary.get(name) is None:
        return "-"
    return f"{summary[name]:.3f} +- {summary[f'{name}_se']:.3f}"


def _draw_point(axis: Axes, x: float, y: float, color: str, **options: Any) -> None:
    axis.errorbar(x, y, color=color, marker="o", markersize=5, capsize=3, linestyle="none", **options)


def _finish(figure: Any, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=120)
    plt.close(figure)
