"""What a name that does not exist was probably meant to be."""

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path


__all__ = ["did_you_mean", "did_you_mean_path", "likely_column", "misspelt_column"]

_MISSPELT = 0.75  # below it two names that both make sense are as near: `output` to `prompt`


def did_you_mean(
    name: str, names: Iterable[str], shown: Callable[[str], object] = "`{}`".format, *, cutoff: float = 0.6
) -> str:
    """` Did you mean X?` for the nearest of `names`, as `shown` writes it; empty if none is as near as `cutoff`."""
    similar = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f" Did you mean {shown(similar[0])}?" if similar else ""


def misspelt_column(name: str, columns: Iterable[str]) -> str | None:
    """
    The column that is `name` misspelt. One with a word more, such as `prompt_id`, is a column of its own.

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
    """The column that is `name` misspelt, or with a word more: what to look at where `name` has to be there."""
    columns = list(columns)
    return misspelt_column(name, columns) or next((column for column in columns if name in _words(column)), None)


def _words(column: str) -> list[str]:
    return column.lower().replace("-", "_").split("_")


def did_you_mean_path(path: Path, *, folders: bool = False) -> str:
    """The same for a path, of what lies beside it; only of folders if `folders`."""
    if not path.parent.is_dir():
        return ""
    beside = [other.name for other in path.parent.iterdir() if other.exists() and (other.is_dir() or not folders)]
    return did_you_mean(path.name, beside, path.parent.joinpath)
