"""Plot of a preference training: logged metrics, and true rewards before and after."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch


__all__ = ["BLUE", "GREY", "INK", "ORANGE", "draw_training_curves"]

matplotlib.use("Agg")


BLUE, ORANGE, GREY, INK = "#2b6cb0", "#d9722e", "#718096", "#2d3748"
_TRAINING = {"linewidth": 1, "alpha": 0.6}
_HELD_OUT = {"linewidth": 1.5, "marker": "o", "markersize": 4}
_Log = list[dict[str, float]]


def draw_training_curves(path: Path, log_history: _Log, rewards_before: np.ndarray, rewards_after: np.ndarray) -> None:
    """
    Writes the plot to `path`.

    Args:
        path (`Path`):
            Output file, with the suffix of an image format.
        log_history (`list[dict[str, float]]`):
            `trainer.state.log_history` of a DPO training.
        rewards_before (`np.ndarray` of shape `(n,)`):
            True rewards of the completions before training.
        rewards_after (`np.ndarray` of shape `(n,)`):
            True rewards of the completions after training.
    """
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    loss, accuracy, margin, rewards, logps, histogram = axes.flat

    _draw_metric(loss, log_history, "loss", INK)
    loss.axhline(np.log(2), color=GREY, linewidth=1, linestyle=":")
    loss.annotate("log 2", (1, np.log(2)), xycoords=loss.get_yaxis_transform(), ha="right", va="bottom", color=GREY)
    loss.set(title="DPO loss", ylabel="nats")

    _draw_metric(accuracy, log_history, "rewards/accuracies", INK)
    accuracy.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
    # The first update compares equal rewards, which gives no accuracy
    accuracy.set(title="Pairs in the right order", ylabel="share", ylim=(0.4, 1))

    _draw_metric(margin, log_history, "rewards/margins", INK)
    margin.set(title="Implicit reward, chosen - rejected")

    for axis, metric, title in (
        (rewards, "rewards", "Implicit rewards"),
        (logps, "logps", "_Log-probabilities of completions"),
    ):
        _draw_metric(axis, log_history, f"{metric}/chosen", BLUE)
        _draw_metric(axis, log_history, f"{metric}/rejected", ORANGE)
        axis.set(title=title)
    logps.set(ylabel="nats")

    for rewards_seen, color, name in ((rewards_before, GREY, "before"), (rewards_after, BLUE, "after")):
        bins = np.linspace(0, 1, 26)
        histogram.hist(rewards_seen, bins, color=color, alpha=0.5, label=f"{name}, mean {rewards_seen.mean():.3f}")
        histogram.axvline(rewards_seen.mean(), color=color, linewidth=2)
    histogram.set(title="True reward of held-out completions", xlabel="reward", ylabel="completions")
    histogram.margins(y=0.2)
    histogram.legend(loc="upper left", fontsize=9)

    for axis in axes.flat[:-1]:
        axis.set_xlabel("update")
    keys = [
        Line2D([], [], color=INK, label="training batches", **_TRAINING),
        Line2D([], [], color=INK, label="held-out pairs", **_HELD_OUT),
        Patch(color=BLUE, label="chosen"),
        Patch(color=ORANGE, label="rejected"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_metric(axis: Axes, log_history: _Log, name: str, color: str) -> None:
    """Draws one metric by update, on training batches and on held-out pairs."""
    for key, style in ((name, _TRAINING), (f"eval_{name}", _HELD_OUT)):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        axis.plot(*zip(*points, strict=True), color=color, **style)
