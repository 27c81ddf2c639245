"""Code in the folder of a model or a tokenizer, which is run only if the user allows it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


__all__ = ["brings_code", "remote_code_explained"]


def brings_code(folder: str) -> bool:
    """Whether the tokenizer in a folder names classes of its own."""
    path = Path(folder, "tokenizer_config.json")
    return path.is_file() and b'"auto_map"' in path.read_bytes()


@contextmanager
def remote_code_explained(name: str, advice: str) -> Iterator[None]:
    """
    Replaces transformers' error for code that it was not allowed to run. With `trust_remote_code=None`, its default,
    transformers asks in the terminal instead: what loads inside the block passes `False` or the user's `True`.

    Args:
        name (`str`):
            Folder or name on the hub that is loaded.
        advice (`str`):
            How to allow the code.

    Raises:
        ValueError: Names the folder, and how to decide.
    """
    try:
        yield
    except ValueError as error:
        if "contains custom code" not in str(error) and "references custom code" not in str(error):
            raise
        raise ValueError(f"{name} comes with code of its own, which has not been run. Read it. {advice}") from None
