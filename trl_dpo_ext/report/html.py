"""What the pages of the report share: the document and its style, and the figure of a panel."""

from collections.abc import Sequence
from html import escape
from typing import Any

from trl_dpo_ext.report.drawing import svg_element
from trl_dpo_ext.report.panels import Panel


__all__ = ["document", "facts_list", "panel_figure", "prompt_text", "samples_table", "table"]

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


def document(title: str, body: str) -> str:
    """Returns an HTML page without scripts or other files. Title and body are HTML."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def panel_figure(panel: Panel) -> str:
    """Returns a panel as an HTML figure, with how to read it."""
    title = escape(panel.title)
    return (
        f"<figure>\n<h3>{title}</h3>\n{svg_element(panel.draw, panel.title)}"
        f"<figcaption>{escape(panel.reading)} <strong>Bad sign:</strong> {escape(panel.bad_sign)}</figcaption>\n"
        "</figure>\n"
    )


def facts_list(facts: dict[str, str]) -> str:
    """Returns names and values as a description list."""
    entries = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{''.join(entries)}</dl>\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of numbers. The first cell of a row is its name. The other cells are HTML."""
    names = "".join(f'<th class="number">{escape(name)}</th>' for name in head)
    lines = ""
    for name, *cells in rows:
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        lines += f"<tr><td>{escape(name)}</td>{numbers}</tr>\n"
    return f"<table>\n<thead><tr>{names}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>\n"


def samples_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of texts. The cells are HTML."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = ""
    for row in rows:
        cells = (f'<td data-label="{escape(name)}">{cell}</td>' for name, cell in zip(head, row, strict=True))
        lines += f"<tr>{''.join(cells)}</tr>\n"
    return f'<table class="samples">\n<thead><tr>{names}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>\n'


def prompt_text(prompt: Any) -> str:
    """Returns a prompt, a text or messages, as text."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message.get('content')}" for message in prompt)
