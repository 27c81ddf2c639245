"""Win rates as files: a PNG, and an HTML page that needs no other file."""

import json
from html import escape
from pathlib import Path
from typing import Any

from trl_dpo_ext.report.drawing import write_png
from trl_dpo_ext.report.html import document, facts_list, panel_figure, prompt_text, samples_table, table
from trl_dpo_ext.report.summary import format_number
from trl_dpo_ext.report.win_rate_panels import entries_of_summary, label_of, win_rate_panels, win_rate_styles
from trl_dpo_ext.whole_file import whole_file, write_text


__all__ = ["write_win_rate_page"]

_SHOWN_OF_EACH = 4
_COUNTS = {
    "num_items": "comparisons",
    "consistent_wins": "wins",
    "consistent_losses": "losses",
    "ties": "ties",
    "flips": "flips",
    "unparsable": "unparsable",
    "failed": "failed",
}


def write_win_rate_page(summary_file: str | Path) -> tuple[Path, Path]:
    """
    Writes a page and a picture beside the summary of `trl-dpo-ext win-rate`.

    Args:
        summary_file (`str` or `Path`):
            The JSON file, beside the file of verdicts.

    Returns:
        `tuple[Path, Path]`: The page and the picture.

    Raises:
        ImportError: Without matplotlib.
    """
    path = Path(summary_file)
    summary = json.loads(path.read_text(encoding="utf-8"))
    verdicts = path.parent / summary["verdicts"]
    page, picture = verdicts.with_suffix(".html"), verdicts.with_suffix(".png")
    panels = win_rate_panels(summary)
    described = _facts(summary)
    title = f"Win rate over {Path(summary['baseline']).name}"
    with whole_file(picture) as unfinished:
        line = "    ".join(f"{name}: {value}" for name, value in described.items())
        write_png(unfinished, title, line, [(panel.title, panel.draw) for panel in panels], win_rate_styles(summary))
    body = (
        f"<h1>{escape(title)}</h1>\n{facts_list(described)}<h2>Results</h2>\n{_results(summary)}"
        "<p><small>Means over prompts with 95 % intervals, clustered by prompt. At equal length: by a regression on "
        "the difference of lengths.</small></p>\n"
        f'<div class="panels">\n{"".join(map(panel_figure, panels))}</div>\n{_differences(summary)}'
        f"{_examples(verdicts, summary['raters'])}"
    )
    write_text(page, document(escape(title), body))
    return page, picture


def _facts(summary: dict[str, Any]) -> dict[str, str]:
    raters = summary["raters"]
    facts = {"judge" if summary["kind"] == "judge" else "people": ", ".join(raters)}
    if summary["judge_prompt"]:
        facts["judge prompt"] = f"{summary['judge_prompt']} ({summary['judge_prompt_hash']})"
    facts["prompts"] = f"{max(entry['num_prompts'] for entry in entries_of_summary(summary)):,}"
    return facts


def _results(summary: dict[str, Any]) -> str:
    rows = []
    for entry in entries_of_summary(summary):
        rates = [_with_interval(entry, key) for key in ("win_rate", "length_controlled_win_rate")]
        rows.append([label_of(entry), *rates, *(f"{entry[name]:,}" for name in _COUNTS)])
    return table(["", "win rate", "at equal length", *_COUNTS.values()], rows)


def _with_interval(entry: dict[str, Any], key: str) -> str:
    if entry[key] is None:
        return ""
    low, high = entry[f"{key}_low"], entry[f"{key}_high"]
    interval = "" if low is None else f" <small>{format_number(low)} to {format_number(high)}</small>"
    return format_number(entry[key]) + interval


def _differences(summary: dict[str, Any]) -> str:
    if not summary.get("differences"):
        return ""
    rows = []
    for row in summary["differences"]:
        at = "" if row["temperature"] is None else f", T = {row['temperature']:g}"
        rows.append([f"{row['policy']} − {row['other']}{at}", _with_interval(row, "win_rate")])
    return (
        f"<h2>Paired differences</h2>\n{table(['', 'win rate'], rows)}"
        "<p><small>Means over the same prompts with 95 % intervals.</small></p>\n"
    )


def _examples(verdicts: Path, raters: list[str]) -> str:
    """Comparisons that the raters decided in each way."""
    found: dict[str, list[dict[str, Any]]] = {}
    with verdicts.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["rater"] in raters:
                found.setdefault(row["item"], []).append(row)
    kinds = {"lost": {"b"}, "won": {"a"}, "undecided": {"a", "b"}, "unparsable": {"unparsable"}}
    shown = []
    for kind, of_kind in kinds.items():
        own = [rows[0] for rows in found.values() if {row["verdict"] for row in rows} == of_kind]
        for row in own[:_SHOWN_OF_EACH]:
            texts = (kind, prompt_text(row["prompt"]).strip(), row["a"], row["b"], row["answer"] or "")
            shown.append([escape(text) for text in texts])
    head = ("outcome", "prompt", "policy", "baseline", "first answer")
    return f"<h2>Examples</h2>\n{samples_table(head, shown)}"
