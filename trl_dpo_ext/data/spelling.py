"""What a name that does not exist was probably meant to be."""

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path


__all__ = ["did_you_mean", "did_you_mean_path"]


def did_you_mean(
    name: str, names: Iterable[str], shown: Callable[[str], object] = "`{}`".format, *, cutoff: float = 0.6
) -> str:
    """` Did you mean X?` for the nearest of `names`, as `shown` writes it; empty if none is as near as `cutoff`."""
    similar = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f" Did you mean {shown(similar[0])}?" if similar else ""


def did_you_mean_path(path: Path, *, folders: bool = False) -> str:
    """The same for a path, of what lies beside it; only of folders if `folders`."""
    if not path.parent.is_dir():
        return ""
    beside = [other.name for other in path.parent.iterdir() if other.exists() and (other.is_dir() or not folders)]
    return did_you_mean(path.name, beside, path.parent.joinpath)
