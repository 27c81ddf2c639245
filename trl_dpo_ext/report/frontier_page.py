"""A frontier as files: a PNG, and an HTML page that needs no other file."""

import json
from html import escape
from pathlib import Path
from typing import Any

from trl_dpo_ext.report.drawing import write_png
from trl_dpo_ext.report.frontier_panels import frontier_panels, legend_styles, read_rows
from trl_dpo_ext.report.html import document, facts_list, panel_figure, table
from trl_dpo_ext.report.summary import format_number
from trl_dpo_ext.whole_file import whole_file, write_text


__all__ = ["write_frontier_page"]

_TITLE = "Reward-KL frontier"
_COLUMNS = {
    "knob": "setting",
    "seed": "seed",
    "update": "updates",
    "reward": "true reward",
    "kl": "KL, nats",
    "kl_k1": "KL by log-ratios",
    "finished_share": "finished",
    "mean_length": "tokens",
    "new_words": "new words",
    "wall_s": "seconds",
    "samples_drawn": "samples",
    "reward_calls": "true rewards",
}
_WITH_SE = ("reward", "kl")


def write_frontier_page(folder: Path) -> tuple[Path, Path]:
    """
    Writes a page and a picture into the folder of `trl-dpo-ext frontier`.

    Args:
        folder (`Path`):
            Folder with `frontier.csv` and `frontier.json`.

    Returns:
        `tuple[Path, Path]`: The page and the picture.

    Raises:
        ImportError: Without matplotlib.
    """
    summary = json.loads((folder / "frontier.json").read_text(encoding="utf-8"))
    rows = read_rows(folder / "frontier.csv")
    panels, described = frontier_panels(rows), _facts(summary)
    page, picture = folder / "frontier.html", folder / "frontier.png"
    with whole_file(picture) as unfinished:
        line = "    ".join(f"{name}: {value}" for name, value in described.items())
        write_png(unfinished, _TITLE, line, [(panel.title, panel.draw) for panel in panels], legend_styles(rows))
    sentences = "".join(f"<li>{escape(line)}</li>" for line in [*summary["statements"], *summary["costs"]])
    body = (
        f"<h1>{_TITLE}</h1>\n{facts_list(described)}{_failures(summary)}"
        f'<div class="panels">\n{"".join(map(panel_figure, panels))}</div>\n'
        f"<h2>What it shows</h2>\n<ul>{sentences}</ul>\n"
        f"<h2>Ends of the runs</h2>\n{_ends(rows)}"
        "<p><small>Means over prompts and their standard errors.</small></p>\n"
    )
    write_text(page, document(_TITLE, body))
    return page, picture


def _facts(summary: dict[str, Any]) -> dict[str, str]:
    done = sum(run["state"] == "done" for run in summary["runs"])
    facts = {"runs": f"{done} of {len(summary['runs'])} done", "machine": summary["machine"]}
    if fit := summary["reward_model"]:
        facts["reward model"] = (
            f"accuracy {format_number(fit['preference_accuracy'])}, calibration error "
            f"{format_number(fit['calibration_error'])} on {fit['num_validation_pairs']:,} pairs"
        )
    return facts


def _failures(summary: dict[str, Any]) -> str:
    failed = [run for run in summary["runs"] if run["state"] != "done"]
    lines = "".join(f"<li>{escape(run['run'])}: {escape(run.get('error', run['state']))}</li>" for run in failed)
    return f'<ul class="notes">{lines}</ul>\n' if failed else ""


def _ends(rows: list[dict[str, Any]]) -> str:
    last: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: int(row["update"])):
        last[row["method"], row["knob"], row["seed"]] = row
    lines = [[row["method"], *(_cell(row, name) for name in _COLUMNS)] for row in last.values()]
    return table(["", *_COLUMNS.values()], lines)


def _cell(row: dict[str, Any], name: str) -> str:
    if name in ("knob", "seed", "update"):
        return escape(str(row[name]))
    if str(row[name]) in ("", "nan"):
        return ""
    se = f" <small>± {format_number(float(row[f'{name}_se']))}</small>" if name in _WITH_SE else ""
    return format_number(float(row[name])) + se
