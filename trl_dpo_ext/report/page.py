"""The report as files: a PNG, and an HTML page that needs no other file."""

from functools import partial
from html import escape
from pathlib import Path

from trl_dpo_ext.report.drawing import draw_sample, source_styles, svg_element, write_png
from trl_dpo_ext.report.panels import Panel, panels_of
from trl_dpo_ext.report.run_data import RunData, Sample
from trl_dpo_ext.report.summary import SummaryRow, facts, format_number, summary_rows
from trl_dpo_ext.whole_file import whole_file, write_text


__all__ = ["html_page", "write_report"]

_CSS = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #2d3748; --grey: #667085; --grid: #e2e8f0;
  --chosen: #0072b2; --rejected: #d55e00; --second: #009e73;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15191f; --ink: #e2e8f0; --grey: #a0aec0; --grid: #2f3947;
    --chosen: #56b4e9; --rejected: #f28e3c; --second: #3fc79a;
  }
}
body { margin: 0 auto; max-width: 80rem; padding: 1.5rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
dl { display: flex; flex-wrap: wrap; gap: .25rem 1.75rem; margin: .75rem 0; }
dl div { max-width: 100%; }
dt { color: var(--grey); font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.notes { border-left: 3px solid var(--rejected); margin: 1rem 0; padding: 0 0 0 2rem; overflow-wrap: anywhere; }
.panels { display: grid; gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.key { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; list-style: none; margin: 0 0 1rem; padding: 0; }
.key li { align-items: center; display: flex; gap: .5rem; }
.key svg { flex: none; width: 3rem; }
figure { margin: 0; max-width: 36rem; }
figcaption { color: var(--grey); font-size: .85rem; }
svg { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--grid); padding: .3rem .75rem .3rem 0; text-align: left; vertical-align: top; }
th { font-weight: normal; }
thead th { color: var(--grey); font-size: .8rem; }
tbody th { border: 0; padding-top: .75rem; }
.number { min-width: 4.5rem; text-align: right; white-space: nowrap; }
small { color: var(--grey); }
code { font-size: .9em; }
.samples { table-layout: fixed; width: 100%; }
.samples td { overflow-wrap: anywhere; white-space: pre-wrap; }
.samples small { display: block; }
@media (max-width: 40rem) {
  th, td { padding-right: .35rem; }
  .number { min-width: 0; }
  .number small { display: block; }
  .samples thead { display: none; }
  .samples td { border: 0; display: block; }
  .samples td::before { color: var(--grey); content: attr(data-label); display: block; font-size: .8rem; }
  .samples tr { border-bottom: 2px solid var(--grid); display: block; padding: .5rem 0; }
}
"""


def write_report(run: RunData, folder: str | Path | None = None) -> tuple[Path, Path]:
    """
    Writes `report.png` and `report.html`.

    Args:
        run ([`~trl_dpo_ext.report.run_data.RunData`]):
            The run, from [`~trl_dpo_ext.report.run_data.read_run`].
        folder (`str` or `Path`, *optional*):
            Where to write; created if it does not exist. Defaults to the run's own folder.

    Returns:
        `tuple[Path, Path]`: The picture and the page.
    """
    folder = Path(folder or run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    panels = panels_of(run)
    png, html = folder / "report.png", folder / "report.html"
    described = "    ".join(f"{name}: {value}" for name, value in facts(run).items())
    with whole_file(png) as unfinished:
        write_png(unfinished, run, _title(run), described, [(panel.title, panel.draw) for panel in panels])
    write_text(html, html_page(run, panels))
    return png, html


def html_page(run: RunData, panels: list[Panel]) -> str:
    """
    Returns the page as HTML, without scripts or other files, and with all text of the run escaped.

    Args:
        run ([`~trl_dpo_ext.report.run_data.RunData`]):
            The run.
        panels (`list[Panel]`):
            Its panels, from [`~trl_dpo_ext.report.panels.panels_of`].
    """
    key = "".join(
        f"<li>{svg_element(partial(draw_sample, style), label, size=(0.8, 0.3))}{escape(label)}</li>"
        for label, style in source_styles(run).items()
    )
    described = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts(run).items()
    )
    title = escape(_title(run))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{title}</h1>\n<dl>{described}</dl>\n{_notes(run.notes)}"
        f'<h2>Curves</h2>\n<ul class="key">{key}</ul>\n'
        f'<div class="panels">\n{"".join(map(_panel, panels))}</div>\n'
        f"<h2>First, last and best</h2>\n{_table(summary_rows(run))}"
        f"{_samples(run.samples)}</body>\n</html>\n"
    )


def _title(run: RunData) -> str:
    return run.folder.resolve().name.encode(errors="replace").decode()  # a folder name may be invalid Unicode


def _notes(notes: list[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>\n' if notes else ""


def _panel(panel: Panel) -> str:
    title = escape(panel.title)
    return (
        f"<figure>\n<h3>{title}</h3>\n{svg_element(panel.draw, panel.title)}"
        f"<figcaption>{escape(panel.reading)} <strong>Bad sign:</strong> {escape(panel.bad_sign)}</figcaption>\n"
        "</figure>\n"
    )


def _table(rows: list[SummaryRow]) -> str:
    groups = []
    for metric in dict.fromkeys(row.metric for row in rows):
        lines = "".join(_table_row(row) for row in rows if row.metric == metric)
        groups.append(f'<tbody>\n<tr><th colspan="4"><code>{escape(metric)}</code></th></tr>\n{lines}</tbody>\n')
    head = "".join(f'<th class="number">{name}</th>' for name in ("first", "last", "best"))
    return f"<table>\n<thead><tr><th></th>{head}</tr></thead>\n{''.join(groups)}</table>\n"


def _table_row(row: SummaryRow) -> str:
    best = f"{format_number(row.best[0])} <small>at {row.best[1]:,}</small>" if row.best else ""
    numbers = (format_number(row.first), format_number(row.last), best)
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return f"<tr><td>{escape(row.where)}</td>{cells}</tr>\n"


def _samples(samples: list[Sample]) -> str:
    tables = []
    for name in dict.fromkeys(sample.name for sample in samples):
        some = [sample for sample in samples if sample.name == name]
        labels = ["prompt", "policy", *(["reference"] if any(sample.reference is not None for sample in some) else [])]
        head = "".join(f"<th>{label}</th>" for label in labels)
        tables.append(
            f"<h2>Samples, {escape(name)} at update {some[0].step:,}</h2>\n"
            f'<table class="samples">\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
            f"{''.join(map(_sample, some))}</tbody>\n</table>\n"
        )
    return "".join(tables)


def _sample(sample: Sample) -> str:
    return (
        f'<tr><td data-label="prompt">{escape(sample.prompt)}</td>'
        f"{_answer('policy', sample.policy, sample.policy_reward)}"
        f"{_answer('reference', sample.reference, sample.reference_reward)}</tr>\n"
    )


def _answer(label: str, text: str | None, reward: float | None) -> str:
    if text is None:
        return ""
    shown = "" if reward is None else f"<small>reward {format_number(reward)}</small>"
    return f'<td data-label="{label}">{escape(text)}{shown}</td>'
