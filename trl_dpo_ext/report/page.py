"""The report as files: a PNG, and an HTML page that needs no other file."""

from functools import partial
from html import escape
from pathlib import Path

from trl_dpo_ext.report.drawing import draw_sample, source_styles, svg_element, write_png
from trl_dpo_ext.report.html import document, panel_figure
from trl_dpo_ext.report.panels import Panel, panels_of
from trl_dpo_ext.report.run_data import RunData, Sample
from trl_dpo_ext.report.summary import SummaryRow, facts, format_number, summary_rows
from trl_dpo_ext.whole_file import whole_file, write_text


__all__ = ["html_page", "write_report"]


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
        styles = source_styles(run)
        write_png(unfinished, _title(run), described, [(panel.title, panel.draw) for panel in panels], styles)
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
    return document(
        title,
        f"<h1>{title}</h1>\n<dl>{described}</dl>\n{_notes(run.notes)}"
        f'<h2>Curves</h2>\n<ul class="key">{key}</ul>\n'
        f'<div class="panels">\n{"".join(map(panel_figure, panels))}</div>\n'
        f"<h2>First, last and best</h2>\n{_table(summary_rows(run))}{_samples(run.samples)}",
    )


def _title(run: RunData) -> str:
    return run.folder.resolve().name.encode(errors="replace").decode()  # a folder name may be invalid Unicode


def _notes(notes: list[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>\n' if notes else ""


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
