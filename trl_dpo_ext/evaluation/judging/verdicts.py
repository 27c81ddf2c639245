"""The file of verdicts: JSON Lines that are only appended to, so that nothing that was answered is lost."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from trl_dpo_ext.data.json_files import parse_object
from trl_dpo_ext.evaluation.judging.comparisons import Comparison
from trl_dpo_ext.evaluation.judging.judgements import FAILED, TIE, UNPARSABLE, VERDICTS
from trl_dpo_ext.reward_model.files.join_parts import to_json
from trl_dpo_ext.reward_model.files.parts import Parts, differences


__all__ = ["ORDERS", "RaterIdentity", "Verdict", "VerdictFile", "verdict_of"]

# Which completion is shown first: that of the policy, or that of the baseline
ORDERS = ("ab", "ba")


@dataclass(frozen=True)
class RaterIdentity:
    """
    Everything about a rater that its verdicts depend on.

    Args:
        rater (`str`):
            Name.
        kind (`str`):
            `"judge"` or `"human"`.
        judge_prompt (`str`, *optional*):
            Name of the prompt of a judge.
        judge_prompt_hash (`str`, *optional*):
            Hash of its text.
        model (`str`, *optional*):
            Model of a judge.
        parameters (`dict`, *optional*):
            Options of its requests.
    """

    rater: str
    kind: str
    judge_prompt: str | None = None
    judge_prompt_hash: str | None = None
    model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """
    A verdict of one rater on one comparison, a line of the file.

    Args:
        item (`str`):
            Hash of prompt and completions.
        rater (`str`):
            Name of the rater.
        kind (`str`):
            `"judge"` or `"human"`.
        verdict (`str`):
            `"a"` (the policy's completion is preferred), `"b"` (the baseline's), `"tie"`, `"unparsable"` (the answer
            says none of these) or `"failed"` (there is no answer).
        order (`str`, *optional*):
            `"ab"` if `a` was shown first, `"ba"` if `b` was. `None` if the rater saw no order, as a reward.
        prompt_id (`int` or `str`, *optional*), prompt, prompt_hash, a, b:
            The comparison.
        judge_prompt, judge_prompt_hash, model, parameters:
            See [`RaterIdentity`].
        answer (`str`, *optional*):
            Answer as it was given.
        error (`str`, *optional*):
            Why there is none.
    """

    item: str
    rater: str
    kind: str
    verdict: str
    order: str | None
    prompt_id: int | str | None
    prompt: Any
    prompt_hash: str
    a: str
    b: str
    judge_prompt: str | None
    judge_prompt_hash: str | None
    model: str | None
    parameters: dict[str, Any]
    answer: str | None = None
    error: str | None = None

    @property
    def key(self) -> tuple[str, str, str | None]:
        """What is asked once: comparison, rater and order."""
        return self.item, self.rater, self.order

    @property
    def prefers_first(self) -> bool | None:
        """Whether the completion that was shown first is preferred. `None` without an order or a preference."""
        if self.order is None or self.verdict not in ("a", "b"):
            return None
        return self.verdict == self.order[0]


def verdict_of(preference: str | None, order: str | None) -> str:
    """
    Returns the verdict of a preference for the first (`"A"`) or second (`"B"`) completion that was shown.

    Example:

    ```python
    >>> from trl_dpo_ext.evaluation.judging.verdicts import verdict_of

    >>> verdict_of("A", "ab"), verdict_of("A", "ba"), verdict_of(None, "ab")
    ('a', 'b', 'unparsable')

    ```
    """
    if preference is None:
        return UNPARSABLE
    if preference == TIE:
        return TIE
    shown = order or ORDERS[0]
    return shown[0] if preference == "A" else shown[1]


class VerdictFile:
    """
    A JSON Lines file of verdicts.

    A verdict is written as soon as it is there. A line that a kill has cut is removed when the file is opened again.
    Of several lines on the same comparison, rater and order the last one counts, which is one after failures.

    Args:
        path (`Path`):
            `.jsonl` file. It is created when it is opened.
    """

    def __init__(self, path: Path):
        self.path = path
        self._found: dict[tuple[str, str, str | None], Verdict] = {}

    def read(self) -> "VerdictFile":
        """
        Reads the file, if there is one.

        Raises:
            ValueError: If a line is no verdict.
        """
        self._found = {}
        if self.path.exists():
            for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), start=1):
                if line.endswith(b"\n"):
                    verdict = _verdict(line, f"line {number} of {self.path}")
                    self._found[verdict.key] = verdict
        return self

    @contextmanager
    def opened(self) -> Iterator["VerdictFile"]:
        """
        Locks the file against other runs, reads it, and opens it for [`append`].

        Raises:
            ValueError: If another run writes it, or a line is no verdict.
        """
        lock = Parts(self.path)
        with lock.locked():
            try:
                self.read()
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
                with os.fdopen(os.open(self.path, flags, 0o666), "ab") as self._file:
                    self._file.truncate(_end_of_lines(self.path))
                    yield self
            finally:
                lock.remove()

    def check_rater(self, identity: RaterIdentity) -> None:
        """
        Checks that the verdicts of a rater that are there were given under the same conditions.

        Raises:
            ValueError: If not.
        """
        now = _conditions(identity)
        for verdict in self._found.values():
            if verdict.rater == identity.rater and (found := differences(_conditions(verdict), now)):
                raise ValueError(
                    f"{self.path} has verdicts of {identity.rater!r} under other conditions: {'; '.join(found)}. "
                    "Choose another output, or give this rater another name with `rater`."
                )

    def append(self, verdict: Verdict) -> None:
        """Writes a verdict."""
        self._file.write(to_json(asdict(verdict)).encode())
        self._file.flush()  # to the system, which writes it even if this process is killed
        self._found[verdict.key] = verdict

    def get(self, key: tuple[str, str, str | None]) -> Verdict | None:
        """Returns the verdict of a [`Verdict.key`], if there is one."""
        return self._found.get(key)

    def has(self, comparison: Comparison, rater: str, order: str | None) -> bool:
        """Whether there is an answer. One that failed is asked again."""
        verdict = self.get((comparison.item, rater, order))
        return verdict is not None and verdict.verdict != FAILED

    def of(self, comparisons: Iterable[Comparison], raters: Iterable[str]) -> list[list[Verdict]]:
        """Returns the verdicts of raters on each comparison."""
        names = set(raters)
        by_item: dict[str, list[Verdict]] = {}
        for verdict in self._found.values():
            if verdict.rater in names:
                by_item.setdefault(verdict.item, []).append(verdict)
        return [by_item.get(comparison.item, []) for comparison in comparisons]


def _end_of_lines(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


def _conditions(rater: RaterIdentity | Verdict) -> dict[str, Any]:
    return {one.name: getattr(rater, one.name) for one in fields(RaterIdentity) if one.name != "rater"}


def _verdict(line: bytes, where: str) -> Verdict:
    try:
        row = parse_object(line.rstrip())
    except ValueError as error:
        raise ValueError(f"The verdict in {where} cannot be read: {error}.") from error
    try:
        verdict = Verdict(**row)
    except TypeError as error:
        raise ValueError(
            f"{where} is no verdict of `trl-dpo-ext win-rate`: {error}. Choose another output."
        ) from error
    if verdict.verdict not in VERDICTS:
        raise ValueError(f"`verdict` in {where} is {verdict.verdict!r}. Expected one of {', '.join(VERDICTS)}.")
    return verdict
