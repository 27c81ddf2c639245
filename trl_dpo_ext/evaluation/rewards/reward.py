"""The protocol of rewards, and the checks of what they return."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Protocol


__all__ = ["Reward", "name_of", "rewards_of"]


class Reward(Protocol):
    """
    Reward of completions, as TRL's trainers call it.

    Prompts are texts or lists of messages. The completion of a text is a text. The completion of messages is a list
    with one message of the assistant.
    """

    def __call__(self, prompts: list[Any], completions: list[Any]) -> Iterable[float]:
        """Returns one reward for each completion."""
        ...


def name_of(reward: Reward) -> str:
    """Returns the name of a reward in messages and results."""
    return str(getattr(reward, "__name__", type(reward).__name__))


def rewards_of(reward: Reward, prompts: Sequence[Any], texts: Sequence[str], where: Sequence[str]) -> list[float]:
    """
    Returns the rewards of completions.

    Args:
        reward ([`Reward`]):
            Reward.
        prompts (`Sequence`):
            Prompt of each completion.
        texts (`Sequence[str]`):
            Completions.
        where (`Sequence[str]`):
            Name of each completion in messages.

    Raises:
        ValueError: If the reward raises an error, or does not return one finite number for each completion.
    """
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    name = name_of(reward)
    try:
        found = list(reward(list(prompts), completions))
    except Exception as error:  # a function of the user
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"The reward `{name}` failed on {len(texts)} completions: {kind}{error}") from error
    if len(found) != len(texts):
        raise ValueError(
            f"The reward `{name}` returned {len(found)} values for {len(texts)} completions. Return one for each."
        )
    return [_finite(value, name, *of_one) for value, *of_one in zip(found, texts, where, strict=True)]


def _finite(value: Any, name: str, text: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    raise ValueError(
        f"The reward `{name}` is {value!r} for {where}, {textwrap.shorten(text, 60)!r}. Return a finite number for "
        "every completion."
    )
