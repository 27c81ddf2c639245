"""The picture of the results: how many times as long as plain training every contender takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt


__all__ = ["draw"]

_COLORS = {"trl": "#718096", "trl cached": "#a0aec0", "floor": "#2d3748"}
_OURS = "#2b6cb0"
_COLUMNS = 2


def draw(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """
    Writes the picture of timing rows to `path`, with one field for each shape and one bar for each contender.

    Rows without a floor beside them are left out.
    """
    fields: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        if row["times_the_floor"]:
            fields.setdefault((row["tuning"], row["shape"]), []).append(row)
    if not fields:
        return
    lines = -(-len(fields) // _COLUMNS)
    figure, axes = plt.subplots(lines, _COLUMNS, figsize=(14, 3.2 * lines + 0.7), layout="constrained", squeeze=False)
    for axis in axes.flat[len(fields) :]:
        axis.set_visible(False)
    for axis, ((tuning, shape), bars) in zip(axes.flat, fields.items(), strict=False):
        values = [float(bar["times_the_floor"]) for bar in bars]
        names = [bar["contender"] for bar in bars]
        drawn = axis.barh(names, values, color=[_COLORS.get(name, _OURS) for name in names])
        labels = [f"{value:.3g}x, {float(bar['seconds']):.3g} s" for value, bar in zip(values, bars, strict=True)]
        axis.bar_label(drawn, labels=labels, padding=3, fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        first = bars[0]
        axis.set_title(
            f"{shape}{' (LoRA)' if tuning == 'lora' else ''}: {first['groups']} x ({first['prompt_tokens']} + "
            f"{first['completions']} x {first['answer_tokens']}) tokens, {first['lengths']}",
            fontsize=9,
        )
        axis.set_xlim(0, 1.4 * max(values))
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    row = rows[0]
    figure.suptitle(
        f"Seconds of an optimizer step over those of plain next-token training on the distinct tokens\n"
        f"{row['model']}, {row['machine']}, torch {row['torch']}, trl {row['trl']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
