"""The results of an evaluation as files: a PNG, and an HTML page that needs no other file."""

import json
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from trl_dpo_ext.report.drawing import write_png
from trl_dpo_ext.report.evaluation_panels import evaluation_panels, policy_styles
from trl_dpo_ext.report.evaluation_results import entries_of
from trl_dpo_ext.report.html import document, facts_list, panel_figure, prompt_text, samples_table, table
from trl_dpo_ext.report.summary import format_number
from trl_dpo_ext.whole_file import whole_file, write_text


__all__ = ["write_evaluation_page"]

_PROMPTS_SHOWN = 8
# Columns of the table of results, and of the table of differences
_RESULTS = {
    "reward": "reward",
    "win_over_reference": "win over reference",
    "kl": "KL, nats",
    "kl_k1": "KL by log-ratios",
    "finished_share": "finished",
    "mean_length": "tokens",
    "distinct_words": "distinct words",
}
_DIFFERENCES = {"reward": "reward", "kl": "KL, nats", "finished_share": "finished", "mean_length": "tokens"}


def write_evaluation_page(results: str | Path) -> tuple[Path, Path]:
    """
    Writes a page and a picture beside the results of `trl-dpo-ext evaluate`.

    Args:
        results (`str` or `Path`):
            The JSON file.

    Returns:
        `tuple[Path, Path]`: The page and the picture.

    Raises:
        ImportError: Without matplotlib.
    """
    path = Path(results)
    result = json.loads(path.read_text(encoding="utf-8"))
    page, picture = path.with_suffix(".html"), path.with_suffix(".png")
    panels = evaluation_panels(result)
    title = "Evaluation of " + ", ".join(result["policies"])
    described = _facts(result)
    with whole_file(picture) as unfinished:
        line = "    ".join(f"{name}: {value}" for name, value in described.items())
        write_png(unfinished, title, line, [(panel.title, panel.draw) for panel in panels], policy_styles(result))
    body = (
        f"<h1>{escape(title)}</h1>\n{facts_list(described)}<h2>Results</h2>\n{_results_table(result)}"
        f"<p><small>Means over prompts and their standard errors, clustered by prompt.</small></p>\n"
        f'<div class="panels">\n{"".join(map(panel_figure, panels))}</div>\n'
        f"<h2>Paired differences</h2>\n{_differences_table(result)}"
        f"<p><small>Means over the same prompts with 95 % intervals.</small></p>\n"
        f"{_samples(result, path.parent)}"
    )
    write_text(page, document(escape(title), body))
    return page, picture


def _facts(result: dict[str, Any]) -> dict[str, str]:
    facts = {
        "prompts": f"{result['num_prompts']:,} of {result['prompts']}",
        "samples of each": f"{result['num_samples']:,}",
        "temperature": format_number(result["temperature"]),
    }
    if result["top_k"]:
        facts["top-k"] = str(result["top_k"])
    if result["top_p"] < 1:
        facts["top-p"] = format_number(result["top_p"])
    facts["tokens at most"] = f"{result['max_new_tokens']:,}"
    if result["rewards"]:
        facts["reward"] = ", ".join(result["rewards"])
    return facts


def _results_table(result: dict[str, Any]) -> str:
    entries = entries_of(result)
    shown = {key: label for key, label in _RESULTS.items() if any(key in entry for entry in entries.values())}
    rows = []
    for name, entry in entries.items():
        rows.append([name, *(_with_se(entry, key) for key in shown)])
    return table(["", *shown.values()], rows)


def _with_se(entry: dict[str, Any], key: str) -> str:
    if entry.get(key) is None:
        return ""
    se = entry.get(f"{key}_se")
    return format_number(entry[key]) + ("" if se is None else f" <small>± {format_number(se)}</small>")


def _differences_table(result: dict[str, Any]) -> str:
    shown = {key: label for key, label in _DIFFERENCES.items() if any(key in row for row in result["differences"])}
    rows = []
    for row in result["differences"]:
        cells = []
        for key in shown:
            interval = ""
            if row[f"{key}_low"] is not None:
                low, high = (format_number(row[f"{key}_{end}"]) for end in ("low", "high"))
                interval = f" <small>{low} to {high}</small>"
            cells.append(format_number(row[key]) + interval)
        rows.append([f"{row['policy']} − {row['other']}", *cells])
    return table(["", *shown.values()], rows)


def _samples(result: dict[str, Any], folder: Path) -> str:
    """The first sample of each policy to the first prompts."""
    by_policy = {name: _first_samples(folder / entry["records"]) for name, entry in entries_of(result).items()}
    rows = [
        [escape(prompt_text(same[0]["prompt"])), *map(_sample, same)] for same in zip(*by_policy.values(), strict=True)
    ]
    return f"<h2>Samples</h2>\n{samples_table(['prompt', *by_policy], rows)}"


def _first_samples(records: Path) -> list[dict[str, Any]]:
    with records.open(encoding="utf-8") as file:
        first = (row for row in map(json.loads, file) if row["sample"] == 0)
        return list(islice(first, _PROMPTS_SHOWN))


def _sample(row: dict[str, Any]) -> str:
    values = [f"{reward} {format_number(value)}" for reward, value in row["rewards"].items()]
    shown = ", ".join([*values, f"KL {format_number(row['kl'])}", *([] if row["finished"] else ["not finished"])])
    return f"{escape(row['completion'])}<small>{escape(shown)}</small>"
