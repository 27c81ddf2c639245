"""Conversion of public datasets to rankings: UltraFeedback, Nectar, Stack Exchange, Stiennon et al.'s summaries."""

import re
from collections.abc import Mapping, Sequence
from typing import Any


__all__ = ["from_nectar", "from_stack_exchange", "from_summarize_from_feedback", "from_ultrafeedback"]

_TURN = re.compile(r"\n\n(Human|Assistant): ?")
REDDIT_PROMPT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
NEWS_PROMPT = "Article:\n{article}\n\nTL;DR:"


def from_ultrafeedback(row: Mapping[str, Any], *, score: str = "overall_score", chat: bool = True) -> dict[str, Any]:
    """
    Converts a row of [`openbmb/UltraFeedback`](https://huggingface.co/datasets/openbmb/UltraFeedback) to scored
    completions.

    Args:
        row (`Mapping`):
            Row with `instruction` and `completions`, each with `response` and scores.
        score (`str`, *optional*, defaults to `"overall_score"`):
            Score to use: `"overall_score"` (of the critique, 1 to 10) or `"fine-grained_score"` (the mean over four
            aspects, 1 to 5).
        chat (`bool`, *optional*, defaults to `True`):
            Whether to return messages. Otherwise, texts are dialogue in the format of `Anthropic/hh-rlhf`.

    Returns:
        `dict`: `prompt`, `completions`, `scores`. Pass `remove_columns=dataset.column_names` to `dataset.map`.

    Raises:
        ValueError: If the row has another schema.

    Example:
    ```python
    >>> from trl_dpo_ext.data import from_ultrafeedback

    >>> completions = [{"response": "4", "overall_score": 9.0}, {"response": "5", "overall_score": 2.0}]
    >>> from_ultrafeedback({"instruction": "2 + 2?", "completions": completions}, chat=False)
    {'prompt': '\\n\\nHuman: 2 + 2?\\n\\nAssistant:', 'completions': [' 4', ' 5'], 'scores': [9.0, 2.0]}

    ```
    """
    schema = "openbmb/UltraFeedback"
    instruction, completions = _values(row, ("instruction", "completions"), schema)
    answers, scores = _columns(completions, ("response", score), schema)
    return _dialogue([instruction], answers, chat) | {"scores": scores}


def from_nectar(row: Mapping[str, Any], *, chat: bool = True) -> dict[str, Any]:
    r"""
    Converts a row of [`berkeley-nest/Nectar`](https://huggingface.co/datasets/berkeley-nest/Nectar) to a ranking.

    Args:
        row (`Mapping`):
            Row with `prompt`, a dialogue whose turns start with `"\n\nHuman:"` and `"\n\nAssistant:"`, and `answers`,
            each with `answer` and `rank` (1 is the best).
        chat (`bool`, *optional*, defaults to `True`):
            Whether to return messages. Otherwise, texts are dialogue in the format of `Anthropic/hh-rlhf`.

    Returns:
        `dict`: `prompt`, `completions`, `ranks`. Pass `remove_columns=dataset.column_names` to `dataset.map`.

    Raises:
        ValueError: If the row has another schema.

    Example:
    ```python
    >>> from trl_dpo_ext.data import from_nectar

    >>> answers = [{"answer": "5", "rank": 2.0}, {"answer": "4", "rank": 1.0}]
    >>> from_nectar({"prompt": "\n\nHuman: 2 + 2?\n\nAssistant: ", "answers": answers})["ranks"]
    [2, 1]

    ```
    """
    schema = "berkeley-nest/Nectar"
    prompt, given = _values(row, ("prompt", "answers"), schema)
    answers, ranks = _columns(given, ("answer", "rank"), schema)
    # Text before the first marker (usually none), then speakers and texts in turn
    start, *spoken = _TURN.split("\n\n" + prompt.lstrip("\n"))
    turns: list[str] = []
    for speaker, text in zip(spoken[::2], spoken[1::2], strict=True):
        if speaker == ("Human", "Assistant")[len(turns) % 2]:
            turns.append(text)
        elif turns:  # the same speaker quotes a marker
            turns[-1] += f"\n\n{speaker}: {text}"
        else:
            start += text
    if turns and len(turns) % 2 == 0 and not turns[-1].strip():
        turns.pop()
    if start.strip() or len(turns) % 2 == 0:
        raise ValueError(
            f"A prompt does not start with `Human:` and end with `Assistant:`: {prompt!r}. Expected a row of {schema}."
        )
    # The dataset stores ranks as floats. The checks of rankings name ranks that are not whole numbers
    whole = [int(rank) if rank is not None and rank == int(rank) else rank for rank in ranks]
    return _dialogue(turns, answers, chat) | {"ranks": whole}


def from_stack_exchange(row: Mapping[str, Any], *, chat: bool = True) -> dict[str, Any]:
    """
    Converts a row of
    [`HuggingFaceH4/stack-exchange-preferences`](https://huggingface.co/datasets/HuggingFaceH4/stack-exchange-preferences)
    to scored completions. Answers with equal scores tie (in the authors' loader, the later one is preferred).

    Args:
        row (`Mapping`):
            Row with `question` and `answers`, each with `text` and `pm_score`. The texts of this dataset are HTML.
            Clean them first.
        chat (`bool`, *optional*, defaults to `True`):
            Whether to return messages. Otherwise, texts are dialogue in the format of `Anthropic/hh-rlhf`, as in the
            authors' loader.

    Returns:
        `dict`: `prompt`, `completions`, `scores`. Pass `remove_columns=dataset.column_names` to `dataset.map`.

    Raises:
        ValueError: If the row has another schema.

    Example:
    ```python
    >>> from trl_dpo_ext.data import from_stack_exchange

    >>> answers = [{"text": "5", "pm_score": 0}, {"text": "4", "pm_score": 7}]
    >>> from_stack_exchange({"question": "2 + 2?", "answers": answers})["scores"]
    [0, 7]

    ```
    """
    schema = "HuggingFaceH4/stack-exchange-preferences"
    question, given = _values(row, ("question", "answers"), schema)
    answers, scores = _columns(given, ("text", "pm_score"), schema)
    return _dialogue([question], answers, chat) | {"scores": scores}


def from_summarize_from_feedback(row: Mapping[str, Any], *, chat: bool = False) -> dict[str, Any]:
    """
    Converts a row of the comparisons of
    [`openai/summarize_from_feedback`](https://huggingface.co/datasets/openai/summarize_from_feedback) (Stiennon et
    al., 2020) to a ranking of two completions.

    Args:
        row (`Mapping`):
            Row with `info` (a Reddit `post` with `title` and `subreddit`, or a news `article`), `summaries`, each with
            `text`, and `choice`, the index of the better one.
        chat (`bool`, *optional*, defaults to `False`):
            Whether to return messages instead of text.

    Returns:
        `dict`: `prompt` in the format of the paper, `completions`, `ranks`. Pass
        `remove_columns=dataset.column_names` to `dataset.map`. To group comparisons of the same post, use
        [`~trl_dpo_ext.data.conversion.to_pairs.all_pairs`] and then
        [`~trl_dpo_ext.data.conversion.from_pairs.pairs_to_rankings`].

    Raises:
        ValueError: If the row has another schema.

    Example:
    ```python
    >>> from trl_dpo_ext.data import from_summarize_from_feedback

    >>> info = {"subreddit": "pets", "title": "My cat", "post": "It sleeps a lot.", "article": None}
    >>> row = {"info": info, "summaries": [{"text": " A dog."}, {"text": " Cat sleeps."}], "choice": 1}
    >>> ranking = from_summarize_from_feedback(row)
    >>> ranking["completions"], ranking["ranks"]
    ([' A dog.', ' Cat sleeps.'], [1, 0])

    ```
    """
    schema = "openai/summarize_from_feedback (comparisons)"
    info, summaries, choice = _values(row, ("info", "summaries", "choice"), schema)
    (texts,) = _columns(summaries, ("text",), schema)
    if choice not in range(len(texts)):
        raise ValueError(f"`choice` is {choice!r} with {len(texts)} summaries. Expected a row of {schema}.")
    if info.get("post") is not None:
        prompt = REDDIT_PROMPT.format_map(info)
    elif info.get("article") is not None:
        prompt = NEWS_PROMPT.format_map(info)
    else:
        raise ValueError(f"`info` has neither `post` nor `article`. Expected a row of {schema}.")
    summaries = [text.strip() for text in texts]
    ranking = (
        _messages([prompt], summaries)
        if chat
        else {"prompt": prompt, "completions": [" " + summary for summary in summaries]}
    )
    return ranking | {"ranks": [int(place != choice) for place in range(len(texts))]}


def _dialogue(turns: Sequence[str], answers: Sequence[str], chat: bool) -> dict[str, Any]:
    if chat:
        return _messages(turns, answers)
    speakers = ("Human", "Assistant")
    prompt = "".join(f"\n\n{speakers[turn % 2]}: {text}" for turn, text in enumerate(turns))
    return {"prompt": prompt + "\n\nAssistant:", "completions": [f" {answer}" for answer in answers]}


def _messages(turns: Sequence[str], answers: Sequence[str]) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {
        "prompt": [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(turns)],
        "completions": [[{"role": "assistant", "content": answer}] for answer in answers],
    }


def _values(row: Mapping[str, Any], names: Sequence[str], schema: str) -> list[Any]:
    missing = [name for name in names if row.get(name) is None]
    if missing:
        raise ValueError(f"A row has no `{missing[0]}`; found {', '.join(map(str, row))}. Expected a row of {schema}.")
    return [row[name] for name in names]


def _columns(entries: Sequence[Mapping[str, Any]], names: Sequence[str], schema: str) -> list[list[Any]]:
    for entry in entries:
        missing = [name for name in names if name not in entry]
        if missing:
            found = ", ".join(map(str, entry))
            raise ValueError(f"An answer has no `{missing[0]}`; found {found}. Expected a row of {schema}.")
    return [[entry[name] for entry in entries] for name in names]
