"""Prompts for judges, and how their answers are read."""

import re
from dataclasses import dataclass
from pathlib import Path

import xxhash

from trl_dpo_ext.evaluation.judging.judgements import TIE
from trl_dpo_ext.spelling import did_you_mean


__all__ = ["JUDGE_PROMPTS", "JudgePrompt", "load_judge_prompt", "preference_of"]

_PLACES = ("{prompt}", "{first}", "{second}")
_PLACE = re.compile("|".join(map(re.escape, _PLACES)))
# Markdown around the words is no other answer
_LAST_LINE = re.compile(r"[\W_]*preferred[\s*_]*:[\s*_]*(?P<preferred>a|b|tie)[\W_]*", re.IGNORECASE)

_ANSWER = """\
First, compare the two in one sentence and say why you prefer one of them. Then end with one line, which is exactly one
of these three:
Preferred: A
Preferred: B
Preferred: tie"""


def _text(introduction: str, prompt: str, completion: str) -> str:
    return (
        f"{introduction}\n\n[{prompt}]\n{{prompt}}\n\n[{completion} A]\n{{first}}\n\n[{completion} B]\n{{second}}\n\n"
        f"{_ANSWER}\n"
    )


JUDGE_PROMPTS = {
    "dialogue": _text(
        "Below are what a person said to an assistant and two replies of assistants. Which reply is the more helpful "
        "one?",
        "Conversation",
        "Reply",
    ),
    "news": _text(
        "Below are a news article and two summaries of it. Which summary is the better one? A good summary says what "
        "is most important in the article, says nothing that the article does not say, and is short.",
        "Article",
        "Summary",
    ),
    "summary": _text(
        "Below are a forum post and two summaries of it. Which summary is the better one? A good summary says what is "
        "most important in the post, and says nothing that the post does not say.",
        "Post",
        "Summary",
    ),
    "summary-concise": _text(
        "Below are a forum post and two summaries of it. Which summary is the better one? A good summary says what is "
        "most important in the post, says nothing that the post does not say, and is short: details that a reader can "
        "do without, and words that add nothing, make it worse.",
        "Post",
        "Summary",
    ),
}


@dataclass(frozen=True)
class JudgePrompt:
    """
    What a judge is asked.

    Args:
        name (`str`):
            Name.
        text (`str`):
            Text with `{prompt}`, `{first}` and `{second}`.
    """

    name: str
    text: str

    def __post_init__(self) -> None:
        for place in _PLACES:
            if self.text.count(place) != 1:
                raise ValueError(
                    f"The judge prompt {self.name} has {place} {self.text.count(place)} times. Write {{prompt}}, "
                    "{first} and {second} once each."
                )

    @property
    def hash(self) -> str:
        """Hash of the text."""
        return xxhash.xxh3_64_hexdigest(self.text.encode())

    def question(self, prompt: str, first: str, second: str) -> str:
        """
        Returns the text with prompt and completions in their places.

        Example:

        ```python
        >>> from trl_dpo_ext.evaluation.judging.judge_prompts import JudgePrompt

        >>> JudgePrompt("short", "{prompt} A: {first} B: {second}").question("2 + 2?", "4", "{prompt}")
        '2 + 2? A: 4 B: {prompt}'

        ```
        """
        values = dict(zip(_PLACES, (prompt, first.strip(), second.strip()), strict=True))
        return _PLACE.sub(lambda found: values[found[0]], self.text)


def load_judge_prompt(name: str) -> JudgePrompt:
    """
    Returns a judge prompt of this package, or reads one from a file.

    Args:
        name (`str`):
            `"summary"`, `"summary-concise"`, `"dialogue"`, `"news"`, or the path of a text file.

    Raises:
        ValueError: If there is no such prompt or file, or the text lacks a place.
    """
    if name in JUDGE_PROMPTS:
        return JudgePrompt(name, JUDGE_PROMPTS[name])
    path = Path(name)
    if not path.is_file():
        hint = did_you_mean(name, JUDGE_PROMPTS)
        raise ValueError(f"The judge prompt {name} is neither one of {', '.join(JUDGE_PROMPTS)} nor a file.{hint}")
    try:
        return JudgePrompt(path.stem, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"The judge prompt {name} is not UTF-8 text: {error}.") from error


def preference_of(answer: str) -> str | None:
    """
    Reads which completion an answer prefers, from its last line.

    Args:
        answer (`str`):
            Answer of a judge.

    Returns:
        `str`, *optional*: `"A"` for the first completion, `"B"` for the second or `"tie"`. `None` if the last line
        that is not empty is not `Preferred: A`, `Preferred: B` or `Preferred: tie`.

    Example:

    ```python
    >>> from trl_dpo_ext.evaluation.judging.judge_prompts import preference_of

    >>> preference_of("A is right.\\n\\n**Preferred: A**\\n")
    'A'
    >>> preference_of("I would say A") is None
    True

    ```
    """
    lines = [line for line in answer.splitlines() if line.strip()]
    found = _LAST_LINE.fullmatch(lines[-1].strip()) if lines else None
    if found is None:
        return None
    preferred = found["preferred"].lower()
    return TIE if preferred == TIE else preferred.upper()
