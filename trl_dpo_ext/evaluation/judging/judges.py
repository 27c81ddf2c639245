"""The protocol of judges that compare two completions, and judges that are Python functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from trl_dpo_ext.evaluation.judging.comparisons import Comparison
from trl_dpo_ext.evaluation.judging.verdicts import RaterIdentity
from trl_dpo_ext.evaluation.rewards.reward_function import hash_function


__all__ = ["Answer", "AskingStopped", "FunctionJudge", "Judge", "RequestLimitReached", "shown"]


@dataclass(frozen=True)
class Answer:
    """
    What came of asking a judge.

    Args:
        text (`str`, *optional*):
            Answer, or `None` if there is none.
        error (`str`, *optional*):
            Why there is none.
    """

    text: str | None
    error: str | None = None


class AskingStopped(ValueError):
    """No other request makes sense: the key is wrong, or nothing is at the address."""


class RequestLimitReached(AskingStopped):
    """As many requests were sent as are allowed."""


class Judge(Protocol):
    """
    A judge. Its answers end with a line `Preferred: A` (the completion that is shown first), `Preferred: B` or
    `Preferred: tie`.
    """

    identity: RaterIdentity

    def ask(self, comparison: Comparison, order: str) -> Answer:
        """
        Shows the two completions, in the order `"ab"` or `"ba"`. Several threads call it at once.

        Raises:
            AskingStopped: If nothing else can be asked.
        """
        ...

    def stop(self) -> None:
        """Ends what waits for another attempt."""
        ...


class FunctionJudge:
    """
    A judge that is a Python function.

    Args:
        function (`Callable`):
            Called as `function(prompt, first, second)` with the prompt (text or messages) and two texts. Returns
            `"A"`, `"B"` or `"tie"`, or a text that ends with the line `Preferred: A`, `Preferred: B` or
            `Preferred: tie`. It must be safe to call from several threads.
        rater (`str`, *optional*):
            Name of the judge. Default: name of the function.

    Example:

    ```python
    >>> from trl_dpo_ext.evaluation.judging.comparisons import Comparison
    >>> from trl_dpo_ext.evaluation.judging.judges import FunctionJudge

    >>> judge = FunctionJudge(lambda prompt, first, second: "A" if len(first) < len(second) else "B", "shorter")
    >>> judge.ask(Comparison("2 + 2?", "4", "It is 4."), "ba")
    Answer(text='Preferred: B', error=None)

    ```
    """

    def __init__(self, function: Callable[[Any, str, str], str], rater: str | None = None):
        self.function = function
        name = str(getattr(function, "__name__", type(function).__name__))
        parameters = {"source": hash_function(function)}
        self.identity = RaterIdentity(rater or name, "judge", model=name, parameters=parameters)

    def ask(self, comparison: Comparison, order: str) -> Answer:
        """Calls the function."""
        try:
            text = self.function(comparison.prompt, *shown(comparison, order))
        except Exception as error:  # a function of the user
            return Answer(None, f"{type(error).__name__}: {error}")
        if not isinstance(text, str):
            return Answer(None, f"the function returned {text!r} and no text")
        return Answer(f"Preferred: {text}" if text in ("A", "B", "tie") else text)

    def stop(self) -> None:
        """There is nothing that waits."""


def shown(comparison: Comparison, order: str) -> tuple[str, str]:
    """Returns the completions in the order in which they are shown."""
    return (comparison.a, comparison.b) if order == "ab" else (comparison.b, comparison.a)
