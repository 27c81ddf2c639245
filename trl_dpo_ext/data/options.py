"""Options of tokenization and truncation: defaults and checks."""

from dataclasses import dataclass, fields
from typing import Any


__all__ = ["RowOptions", "check_modes", "preparation_options"]


@dataclass
class RowOptions:
    """
    Options of tokenization and truncation, with the names that they have in the trainers.

    Args:
        tokenization (`str`, *optional*, defaults to `"separate"`):
            `"separate"`: prompt and completions apart, and truncation like the authors'. `"joint"`: TRL's tokenization
            and truncation.
        max_length (`int`, *optional*, defaults to `512`):
            Most tokens of a prompt with a completion; `None`: no truncation.
        max_prompt_length (`int`, *optional*):
            With `"separate"`: tokens that the prompt of a long row is truncated to. Default: half of `max_length`.
        prompt_truncation_mode (`str`, *optional*):
            With `"separate"`: which end of a truncated prompt is kept. Default: `"keep_end"`.
        truncation_mode (`str`, *optional*, defaults to `"keep_start"`):
            With `"joint"`: which end of a truncated prompt with completion is kept.

    Raises:
        ValueError: If a value does not exist or would have no effect.
    """

    tokenization: str = "separate"
    max_length: int | None = 512
    max_prompt_length: int | None = None
    prompt_truncation_mode: str | None = None
    truncation_mode: str = "keep_start"

    def __post_init__(self) -> None:
        check_modes(self.tokenization, self.prompt_truncation_mode, self.truncation_mode)
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"`max_length={self.max_length}` leaves no room for a prompt and an answer. Raise it.")
        if self.joint:
            self._check_joint()
        else:
            self._resolve_separate()

    @classmethod
    def of(cls, args: Any) -> "RowOptions":
        """Returns the options of a config, or of a command's arguments."""
        return cls(**{option.name: getattr(args, option.name) for option in fields(cls)})

    @property
    def joint(self) -> bool:
        """Whether rows are tokenized and truncated as by TRL."""
        return self.tokenization == "joint"

    def _check_joint(self) -> None:
        for name in ("max_prompt_length", "prompt_truncation_mode"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}={getattr(self, name)!r}` has no effect with `tokenization='joint'`, which "
                    "truncates as TRL does (`max_length`, `truncation_mode`). Leave it out, or use "
                    "`tokenization='separate'`."
                )

    def _resolve_separate(self) -> None:
        if self.prompt_truncation_mode is None:
            self.prompt_truncation_mode = "keep_end"
        if self.truncation_mode != "keep_start":
            raise ValueError(
                f"`truncation_mode={self.truncation_mode!r}` has no effect with `tokenization='separate'`. Use "
                f"`prompt_truncation_mode={self.truncation_mode!r}`, or `tokenization='joint'` for TRL's truncation."
            )
        if self.max_length is None:
            if self.max_prompt_length is not None:
                raise ValueError(
                    f"`max_prompt_length={self.max_prompt_length}` has no effect with `max_length=None`: a prompt is "
                    "only truncated in a row that exceeds `max_length`. Set `max_length`, or leave "
                    "`max_prompt_length` out."
                )
            return
        if self.max_prompt_length is None:
            self.max_prompt_length = self.max_length // 2
        if not 0 < self.max_prompt_length < self.max_length:
            raise ValueError(
                f"`max_prompt_length={self.max_prompt_length}` must be above 0 and below "
                f"`max_length={self.max_length}`."
            )


def check_modes(tokenization: str, prompt_truncation_mode: str | None, truncation_mode: str) -> None:
    """Raises a `ValueError` if one of these options has a value that does not exist."""
    modes = ("keep_start", "keep_end")
    for name, value, choices in (
        ("tokenization", tokenization, ("separate", "joint")),
        ("prompt_truncation_mode", prompt_truncation_mode, (*modes, None)),
        ("truncation_mode", truncation_mode, modes),
    ):
        if value not in choices:
            allowed = ", ".join(repr(choice) for choice in choices if choice)
            raise ValueError(f"`{name}={value!r}` does not exist. Choose one of {allowed}.")


def preparation_options(args: Any) -> dict[str, Any]:
    """Returns the options of a config that preparation accepts: of all trainers, of rankings, of single answers."""
    names = [*(option.name for option in fields(RowOptions)), "score_tie_gap", "max_completions", "alone"]
    return {name: getattr(args, name) for name in names if hasattr(args, name)}
