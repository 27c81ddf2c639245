"""Suggestions for names that do not exist."""

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path


__all__ = ["did_you_mean", "did_you_mean_path", "likely_column", "misspelt_column"]

_MISSPELT = 0.75  # with a lower limit, names with different meanings match, such as `output` and `prompt`


def did_you_mean(
    name: str, names: Iterable[str], shown: Callable[[str], object] = "`{}`".format, *, cutoff: float = 0.6
) -> str:
    """Returns ` Did you mean X?` for the nearest of `names`, formatted by `shown`, or nothing below `cutoff`."""
    similar = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f" Did you mean {shown(similar[0])}?" if similar else ""


def misspelt_column(name: str, columns: Iterable[str]) -> str | None:
    """
    Returns the column that is a misspelling of `name`. A column with another word, such as `prompt_id`, is not.

    Example:
    ```python
    >>> from trl_dpo_ext.spelling import misspelt_column

    >>> misspelt_column("prompt", ["prompt_id", "promt"])
    'promt'

    ```
    """
    lower = {column.lower(): column for column in columns if name not in _words(column) or column.lower() == name}
    similar = difflib.get_close_matches(name, list(lower), n=1, cutoff=_MISSPELT)
    return lower[similar[0]] if similar else None


def likely_column(name: str, columns: Iterable[str]) -> str | None:
    """Returns the column that is a misspelling of `name`, or contains it as a word. For columns that must exist."""
    columns = list(columns)
    return misspelt_column(name, columns) or next((column for column in columns if name in _words(column)), None)


def _words(column: str) -> list[str]:
    return column.lower().replace("-", "_").split("_")


def did_you_mean_path(path: Path, *, folders: bool = False) -> str:
    """Same for a path, with suggestions from its folder, or only for subfolders with `folders`."""
    if not path.parent.is_dir():
        return ""
    beside = [other.name for other in path.parent.iterdir() if other.exists() and (other.is_dir() or not folders)]
    return did_you_mean(path.name, beside, path.parent.joinpath)
