"""The page and the picture that a command writes beside its results."""

import sys
from importlib import import_module
from pathlib import Path


__all__ = ["write_pictures"]


def write_pictures(module: str, function: str, results: Path) -> None:
    """
    Writes a page and a picture, or says that matplotlib is missing.

    Args:
        module (`str`):
            Module of `trl_dpo_ext.report`.
        function (`str`):
            Its function, which takes the results and returns the paths of page and picture.
        results (`Path`):
            File or folder with the results.
    """
    try:
        write = getattr(import_module(f"trl_dpo_ext.report.{module}"), function)
    except ImportError as error:
        print(f"No pictures. {error}", file=sys.stderr)
        return
    page, picture = write(results)
    print(f"Wrote {page} and {picture}.", file=sys.stderr)
