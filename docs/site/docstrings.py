"""Docstrings in the syntax of Hugging Face as Markdown: links, math, and lists of arguments."""

import re
import sys
from pathlib import Path

import griffe


sys.path.insert(0, str(Path(__file__).parent))  # mkdocstrings runs this file by its path

from public_names import all_public_names  # noqa: E402


_SECTION = re.compile(r"^(Args|Parameters|Attributes|Returns|Yields|Raises|Example|Examples):$")
_ENTRY = re.compile(r"^    (\S.*):$")  # `name (type):`, with the description on the next lines
_ENTRY_ON_A_LINE = re.compile(r"^    (`[^`]+`(?: of shape `[^`]+`)?|\w+Error|\w+Warning): (.*)$")
_LINK = re.compile(r"\[`(~?)([\w.]+)`\](?!\[)")


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def __init__(self) -> None:
        self._names = all_public_names()

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, self._names)


def to_markdown(docstring: str, names: dict[str, str]) -> str:
    """Returns a docstring as Markdown. `names` are the full names of what has an entry in the reference."""
    lines: list[str] = []
    section = code = first = False  # `first`: the next line is the first of the description of an entry
    for line in docstring.splitlines():
        if line.strip() == "<BLANKLINE>":
            line = ""
        code ^= line.strip().startswith("```")
        if not code and (title := _SECTION.match(line)):
            section = True
            lines += ["", f"**{title[1]}**", ""]
        elif section and not code and line and not line.startswith(" "):
            section = False
            lines += ["", line]
        elif section and not code and (entry := _ENTRY.match(line)):
            lines += ["", _entry(entry[1]), ""]
            first = True
        elif section and not code and (entry := _ENTRY_ON_A_LINE.match(line)):
            lines += ["", entry[1], "", f":   {entry[2]}"]
            first = False
        elif section and line.startswith("        "):
            lines.append((":   " if first else "    ") + line[8:])
            first = False
        elif section and line.startswith("    "):
            lines.append(line[4:])
        else:
            lines.append(line)
    text = _linked("\n".join(lines), names)
    return re.sub(r"\\\\\((.*?)\\\\\)", lambda math: f"${math[1].strip()}$", text, flags=re.DOTALL)


def _entry(text: str) -> str:
    """`name (type)` of an argument, or the type of a result."""
    name, space, kind = text.partition(" (")
    return f"**`{name}`** ({kind}" if space and re.fullmatch(r"[*\w, ]+", name) else text


def _linked(text: str, names: dict[str, str]) -> str:
    """Links to public names, and plain code for others."""

    def link(found: re.Match[str]) -> str:
        short, name = found[2].rpartition(".")[2], found[2]
        shown = short if found[1] else name
        if name.startswith(("trl.", "transformers.", "peft.", "torch.", "datasets.", "accelerate.", "argparse.")):
            return f"`{shown}`"
        first, _, member = name.partition(".")
        full = names.get(short) or (member and first in names and f"{names[first]}.{member}")
        return f"[`{shown}`][{full}]" if full else f"`{shown}`"

    return _LINK.sub(link, text)
