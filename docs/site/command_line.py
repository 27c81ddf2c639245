"""The page of the command line: every option of every command, as its parser has it."""

import argparse
from collections.abc import Iterator
from unittest.mock import patch

from trl_dpo_ext import cli


_INTRODUCTION = """\
# Command line

`trl-dpo-ext COMMAND`, and on several processes `accelerate launch -m trl_dpo_ext.cli COMMAND`. This page has the text
of `trl-dpo-ext COMMAND --help`.

| command | what it does |
|---|---|
"""
_TRAINING = ("dpo", "rank", "preferred-ft", "unlikelihood")
_TRAINING_NOTE = """\
Options are those of TRL's `trl dpo` and of the trainer's config, in a YAML file (`--config`) or on the command line.
The command line replaces the file. An option that does not exist is an error that names the nearest one. Options that
[`preset`](trainers.md#presets) sets have no default here.
"""


class _Found(Exception):
    """Ends a command when it is about to read its options."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """Returns the parser of a command."""

    def stop(self, *_, **__):
        raise _Found(self)

    with patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        try:
            cli.main([command])
        except _Found as found:
            return found.args[0]
    raise AssertionError(f"`{command}` does not read its options with argparse")


def command_line_page() -> str:
    """Returns the page as Markdown."""
    commands = cli.COMMANDS
    text = _INTRODUCTION + "".join(f"| [`{name}`](#{name}) | {_cell(what)} |\n" for name, what in commands.items())
    of_dpo = _rows(parser_of("dpo"))
    for command in commands:
        parser = parser_of(command)
        text += f"\n## {command}\n\n```text\n{parser.format_usage().strip()}\n```\n\n{_description(parser)}"
        rows = _rows(parser)
        if command in _TRAINING:
            text += f"\n{_TRAINING_NOTE}\n" if command == "dpo" else ""
            if command != "dpo":
                rows = {name: row for name, row in rows.items() if of_dpo.get(name) != row}
                text += "\nOptions that [`dpo`](#dpo) does not have, or that differ from its:\n\n"
        text += "\n| option | |\n|---|---|\n" + "".join(rows.values())
    return text


def _description(parser: argparse.ArgumentParser) -> str:
    parts = [part for part in (parser.description, parser.epilog) if part and not part.startswith("usage")]
    if isinstance(parser.formatter_class, type) and issubclass(
        parser.formatter_class, argparse.RawDescriptionHelpFormatter
    ):
        return "".join(f"```text\n{part.strip()}\n```\n" for part in parts)
    return "\n\n".join(parts) + "\n" if parts else ""


def _rows(parser: argparse.ArgumentParser) -> dict[str, str]:
    return {
        action.dest: f"| {_names(action)} | {_cell(help_text)}{_choices(action)}{_default(action)} |\n"
        for action, help_text in _actions(parser)
    }


def _actions(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.Action, str]]:
    for action in parser._actions:
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
            yield action, (action.help or "").replace("%%", "%")


def _names(action: argparse.Action) -> str:
    flags = [flag for flag in action.option_strings if "_" in flag or "-" not in flag.lstrip("-")]
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    return ", ".join(f"`{flag}`" for flag in flags) + f"{' ' if flags else ''}{f'`{metavar}`' if metavar else ''}"


def _choices(action: argparse.Action) -> str:
    names = [str(getattr(choice, "value", choice)) for choice in action.choices or ()]
    return f" One of {', '.join(f'`{name}`' for name in names)}." if names else ""


def _default(action: argparse.Action) -> str:
    if action.required and action.option_strings:
        return " (required)"
    named = "default:" in (action.help or "").lower()
    plain = action.default in (None, argparse.SUPPRESS) or isinstance(action, argparse._StoreTrueAction)
    value = getattr(action.default, "value", action.default)
    return "" if plain or named else f" (default: `{_cell(str(value))}`)"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
