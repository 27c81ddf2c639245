"""Functions that are named on the command line, such as rewards, with a hash of their source."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from trl_dpo_ext.spelling import did_you_mean


__all__ = ["hash_function", "load_function"]


def load_function(name: str) -> Any:
    """
    Imports a function.

    Args:
        name (`str`):
            `module:function` or `folder/file.py:function`. Modules are also looked for in the current folder.

    Returns:
        `Callable`

    Raises:
        ValueError: If there is no such function.

    Example:

    ```python
    >>> from trl_dpo_ext.evaluation.rewards.reward_function import load_function

    >>> load_function("math:fsum")
    <built-in function fsum>

    ```
    """
    module_name, _, function_name = name.rpartition(":")
    if not module_name or not function_name:
        raise ValueError(f"The function {name!r} has no `:`. Write `module:function` or `file.py:function`.")
    module = _load_file(Path(module_name)) if module_name.endswith(".py") else _load_module(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        there = [found for found in vars(module) if callable(getattr(module, found)) and not found.startswith("_")]
        what = "is not a function" if hasattr(module, function_name) else "does not exist"
        raise ValueError(f"`{function_name}` {what} in {module_name}.{did_you_mean(function_name, there)}")
    return function


def hash_function(function: Any) -> str:
    """Hash of the source of the module that a function is from, or of its name if there is no source."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__qualname__)}"
    digest = xxhash.xxh3_128(name.encode())
    file = getattr(module, "__file__", None)
    if file and Path(file).suffix == ".py":
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"The file {path} with the function does not exist.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    with _first_on_path(path.parent):  # as Python does for a script
        spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> Any:
    here = Path.cwd()
    try:
        with _first_on_path(here):  # which Python does for `python -m` but not for an installed command
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # another module, which this one needs
        raise ValueError(f"There is no module `{name}`, also not in {here}.") from error


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    name = str(folder)
    sys.path.insert(0, name)
    try:
        yield
    finally:
        sys.path.remove(name)
