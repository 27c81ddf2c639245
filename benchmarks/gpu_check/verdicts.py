"""Answers to the questions that only a GPU settles, from what the sections found."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.gpu_check.sections import Found


__all__ = ["Question", "Verdict", "answer", "at", "at_least", "at_most", "holds"]

# From the results of all sections to a number (or a truth), or `None` where it was not found
Read = Callable[[Mapping[str, Found]], Any]


@dataclass(frozen=True)
class Question:
    """
    A question with a limit.

    Args:
        text (`str`): What would be true.
        read (`Callable`): The number that decides, of the results of all sections.
        is_true (`Callable`): Whether it is true, given the number.
        is_timed (`bool`): Whether it is about speed or kernels of a GPU, of which a dry run says nothing.
    """

    text: str
    read: Read
    is_true: Callable[[Any], bool]
    is_timed: bool = True


@dataclass(frozen=True)
class Verdict:
    """Answer to a question: `yes`, `no` or `unknown`, with the number that decided."""

    question: str
    verdict: str
    number: Any


def answer(questions: Iterable[Question], sections: Mapping[str, Found], dry: bool) -> list[dict[str, Any]]:
    """Verdicts on all questions, as JSON has them."""
    return [asdict(_answer(question, sections, dry)) for question in questions]


def _answer(question: Question, sections: Mapping[str, Found], dry: bool) -> Verdict:
    number = None if dry and question.is_timed else question.read(sections)
    if number is None:
        return Verdict(question.text, "unknown", None)
    return Verdict(question.text, "yes" if question.is_true(number) else "no", number)


def at(*path: str) -> Read:
    """Reads what stands at a path of keys; `None` if it is not there."""

    def read(sections: Mapping[str, Found]) -> Any:
        found: Any = sections
        for key in path:
            if not isinstance(found, Mapping) or key not in found:
                return None
            found = found[key]
        return found

    return read


def at_least(text: str, read: Read, limit: float) -> Question:
    """A question whose number must reach a limit."""
    return Question(text, read, lambda number: number >= limit)


def at_most(text: str, read: Read, limit: float, is_timed: bool = True) -> Question:
    """A question whose number must not go beyond a limit."""
    return Question(text, read, lambda number: number <= limit, is_timed)


def holds(text: str, read: Read, is_timed: bool = False) -> Question:
    """A question whose number is its answer."""
    return Question(text, read, bool, is_timed)
