"""Secrets in options (tokens and passwords), which are neither shown nor saved."""

import re
import reprlib
from collections.abc import Mapping
from typing import Any


__all__ = ["MASK", "shown", "without_secrets"]

MASK = "<secret>"

# Options and keyword arguments with secrets. `pad_token` and the like are tokens of a model
_NAME = re.compile(r"(^|_)(token|api_?key|secret|secret_key|access_key|authorization|passw(or)?d)$", re.IGNORECASE)
_WORD_OF_A_MODEL = re.compile(r"(^|_)(pad|eos|bos|unk|sep|cls|mask|image|audio|video)_token$", re.IGNORECASE)

# Tokens of Hugging Face, OpenAI and GitHub, and the user in a URL
_TEXT = re.compile(r"\b(?:(?:hf|api_org|gh[pousr]|github_pat)_|sk-)\w[\w-]{7,}|(?<=://)[^/\s@]+(?=@)")


def without_secrets(value: Any, name: str = "", *, mask: str | None = MASK) -> Any:
    """
    Returns a copy of an option's value, or of options by name, without secrets.

    Args:
        value:
            Text, number, list or mapping, with any nesting.
        name (`str`, *optional*):
            Name of the option.
        mask (`str`, *optional*, defaults to `"<secret>"`):
            Replacement for a secret option.

    Returns:
        The same value. Secrets are recognized by their names (`hub_token`, `api_key`) or their form (`hf_...`).
    """
    if isinstance(value, Mapping):
        return {key: without_secrets(inner, str(key), mask=mask) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets(inner, name, mask=mask) for inner in value]
    if type(value) is not str:
        return value
    return mask if _is_secret(name) else _TEXT.sub(MASK, value)


def shown(value: Any, name: str = "") -> str:
    """Returns the value of an option for a message: without secrets, and short for any size or nesting."""
    if isinstance(value, int) and abs(value) >= 10**15:
        return f"<an integer of {value.bit_length()} bits>"
    return repr(MASK) if _is_secret(name) and isinstance(value, str) else _Short().repr(value)


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxdict = 3, 200, 200, 6

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(_TEXT.sub(MASK, x), level)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        return super().repr_dict({key: MASK if _is_secret(str(key)) else x[key] for key in x}, level)

    def repr_int(self, x: int, level: int) -> str:
        return shown(x) if abs(x) >= 10**15 else repr(x)


def _is_secret(name: str) -> bool:
    return bool(_NAME.search(name)) and not _WORD_OF_A_MODEL.search(name)
