"""Command-line parser of the commands that do not train, with one-line errors."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.spelling import did_you_mean


__all__ = ["WordParser", "count", "file_path", "number"]

_MOST = 2**31 - 1


class WordParser(argparse.ArgumentParser):
    """
    [`argparse.ArgumentParser`] that reports errors in one line, suggests the nearest option for unknown ones, and
    exits with status 2.

    Args:
        command (`str`):
            Name of the command.
        **options:
            Same as in `argparse.ArgumentParser`.
    """

    def __init__(self, command: str, **options: Any):
        super().__init__(prog=f"trl-dpo-ext {command}", allow_abbrev=False, **options)
        self._command = command

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words: Sequence[str] = sys.argv[1:] if args is None else args
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for word in words:
            flag = word.split("=")[0]
            if flag.startswith("--") and flag not in (*flags, "--"):
                self.error(f"there is no option {flag}.{did_you_mean(flag, flags, str)}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        sys.exit(fail(self._command, message if message.endswith((".", "?")) else f"{message}."))


def count(least: int = 1) -> Callable[[str], int]:
    """Returns a reader of whole numbers from `least` to 2^31 - 1."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(_MOST)) and least <= int(text) <= _MOST):
            above = f"above {least - 1}" if least < 2 else f"of at least {least}"
            raise argparse.ArgumentTypeError(f"{_short(text)} is not a whole number {above} and at most {_MOST}")
        return int(text)

    return read


def number(*, above_0: bool) -> Callable[[str], float]:
    """Returns a reader of finite numbers from 0 (or above 0) to 1e8."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0 <= value <= 1e8) or (above_0 and value == 0):
            least = "above 0" if above_0 else "of at least 0"
            raise argparse.ArgumentTypeError(f"{_short(text)} is not a finite number {least} and at most 1e8")
        return value

    return read


def file_path(text: str) -> Path:
    """Reads the path of a writable file in an existing folder."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder. Pass the path of a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path if path.exists() else path.parent} cannot be written to")
    return path


def _short(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:30]}..."
