"""The order of a ranking: ranks from scores, best first, and the completions to leave out."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from trl_dpo_ext.batches import RANKING_REF_LOGPS_COLUMN, REF_LOGPS_COLUMNS
from trl_dpo_ext.data.checks import TOKENIZED_COLUMNS
from trl_dpo_ext.data.messages import is_empty
from trl_dpo_ext.data.prompts import split_messages, split_prompt
from trl_dpo_ext.data.rankings.checks import check_tie_gap


__all__ = [
    "PAIR_COLUMNS",
    "PER_COMPLETION_COLUMNS",
    "as_ranking",
    "best_first",
    "dense_ranks",
    "empty_completions",
    "ranking_problem",
    "ranks_from_scores",
    "repeated_completions",
    "select_completions",
    "split_shared_prompt",
]

PAIR_COLUMNS = ("chosen", "rejected", "chosen_ids", "rejected_ids", *REF_LOGPS_COLUMNS)
# A pair is in order; `scores` beside it are no column of its completions
_REPLACED = frozenset((*PAIR_COLUMNS, "scores"))
PER_COMPLETION_COLUMNS = ("completions", "completion_ids", "ranks", "scores", RANKING_REF_LOGPS_COLUMN)


def ranks_from_scores(scores: Sequence[float], tie_gap: float = 0.0) -> list[int]:
    """
    Ranks of scored completions: 0 for the highest score, equal where scores tie.

    From the highest score down, a completion whose score is more than `tie_gap` below the best of the current group
    begins the next group; all others tie with that best one. So no two completions of a group differ by more than
    `tie_gap`, however many scores lie between them.

    Args:
        scores (`Sequence[float]`):
            Scores, higher is better, in any order.
        tie_gap (`float`, *optional*, defaults to `0.0`):
            Difference up to which scores tie, 0 or more. By default only equal scores do.

    Returns:
        `list[int]`: Ranks in the order of `scores`, without gaps.

    Raises:
        ValueError: If `tie_gap` is negative or not a number.

    Example:
    ```python
    >>> from trl_dpo_ext.data.rankings.order import ranks_from_scores

    >>> ranks_from_scores([3.0, 4.5, 4.0, 4.5])
    [2, 0, 1, 0]
    >>> ranks_from_scores([3.0, 4.5, 4.0, 3.5], tie_gap=0.5)
    [1, 0, 0, 1]

    ```
    """
    check_tie_gap(tie_gap)
    ranks = [0] * len(scores)
    rank, best = -1, 0.0
    for place in sorted(range(len(scores)), key=lambda place: -scores[place]):
        if rank < 0 or best - scores[place] > tie_gap:
            rank, best = rank + 1, scores[place]
        ranks[place] = rank
    return ranks


def dense_ranks(ranks: Sequence[int | None]) -> list[int]:
    """
    Ranks without gaps, 0 for the best; `None` becomes one last rank, shared by all that nobody ranked.

    Args:
        ranks (`Sequence[int | None]`):
            Whole numbers, lower is better, in any order.

    Returns:
        `list[int]`: Ranks in the order of `ranks`.

    Example:
    ```python
    >>> from trl_dpo_ext.data.rankings.order import dense_ranks

    >>> dense_ranks([7, None, 2, 7, None])
    [1, 2, 0, 1, 2]

    ```
    """
    places = sorted({rank for rank in ranks if rank is not None})
    return [len(places) if rank is None else places.index(rank) for rank in ranks]


def best_first(row: Mapping[str, Any], size: int, score_tie_gap: float = 0.0) -> tuple[list[int], list[int]]:
    """
    The order of a row's completions: by `ranks`, otherwise by `scores`, otherwise the order of the row.

    Args:
        row (`Mapping`):
            Checked row.
        size (`int`):
            Number of its completions.
        score_tie_gap (`float`, *optional*, defaults to `0.0`):
            See [`ranks_from_scores`].

    Returns:
        `tuple[list[int], list[int]]`: Indices of the completions, best first (ties in the order of the row), and the
        rank of each completion in the order of the row.
    """
    if row.get("ranks") is not None:
        ranks = dense_ranks(row["ranks"])
    elif row.get("scores") is not None:
        ranks = ranks_from_scores(row["scores"], score_tie_gap)
    else:
        ranks = list(range(size))
    return sorted(range(size), key=ranks.__getitem__), ranks


def as_ranking(row: Mapping[str, Any]) -> dict[str, Any]:
    """
    A preference pair, raw or tokenized, as a ranking of two. A ranking is returned as it is.

    Example:
    ```python
    >>> from trl_dpo_ext.data.rankings.order import as_ranking

    >>> as_ranking({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"})
    {'prompt': '2 + 2 =', 'completions': [' 4', ' 5'], 'ranks': [0, 1]}

    ```
    """
    if "completions" in row or "completion_ids" in row:
        return dict(row)
    ranking = {name: value for name, value in row.items() if name not in _REPLACED}
    if {"chosen", "rejected"} <= row.keys():
        ranking["completions"] = [row["chosen"], row["rejected"]]
    if set(TOKENIZED_COLUMNS) <= row.keys():
        ranking["completion_ids"] = [row["chosen_ids"], row["rejected_ids"]]
    ranking["ranks"] = [0, 1]
    if set(REF_LOGPS_COLUMNS) <= set(row):
        ranking[RANKING_REF_LOGPS_COLUMN] = [row[name] for name in REF_LOGPS_COLUMNS]
    return ranking


def split_shared_prompt(completions: Sequence[Any], *, by_turn: bool = True) -> tuple[Any, list[Any]]:
    r"""
    Splits the common start off completions. Empty ones stay empty. A single text is not split. Of a single list of
    messages the last message is the completion.

    The rule is that of [`~trl_dpo_ext.data.prompts.split_prompt`], over all completions: text in the format of
    `Anthropic/hh-rlhf` is split after the last `"\n\nAssistant:"` that all share, anything else as TRL does.

    Args:
        completions (`Sequence`):
            All text, or all message lists.
        by_turn (`bool`, *optional*, defaults to `True`):
            Whether dialogue is split after a turn.

    Returns:
        `tuple`: The prompt (`None` if there is no completion), and the completions without it.

    Example:
    ```python
    >>> from trl_dpo_ext.data.rankings.order import split_shared_prompt

    >>> split_shared_prompt(["The sky is blue.", "The sky is grey.", "The sky is up."])
    ('The sky is', [' blue.', ' grey.', ' up.'])

    ```
    """
    if not completions:
        return None, []
    first, *others = [completion for completion in completions if completion] or [completions[0]]
    if not isinstance(first, str):
        prompt, _ = split_messages([first, *others])
        return prompt, [completion[len(prompt) :] for completion in completions]
    # Of the starts that the first completion shares with each of the others, the shortest is shared by all
    prompts = [split_prompt({"chosen": first, "rejected": other}, by_turn=by_turn)["prompt"] for other in others]
    end = min(map(len, prompts), default=0)
    return first[:end], [completion[end:] for completion in completions]


def empty_completions(completions: Mapping[int, Any]) -> dict[int, str]:
    """
    Completions without any text, with the reason.

    Args:
        completions (`Mapping[int, Any]`):
            Texts or message lists, by index.

    Returns:
        `dict[int, str]`
    """
    return {place: f"completion {place} is empty" for place, value in completions.items() if is_empty(value)}


def repeated_completions(completions: Mapping[int, Hashable], ranks: Sequence[int]) -> dict[int, str]:
    """
    Completions to leave out because the row contains them more than once, with the reason.

    Copies are one completion if no other completion is ranked between them (above one and below another, or level with
    one of two that do not tie): the best of them stays. If another completion is ranked between copies, their rank is
    unknown and none of them stays. The other completions keep their order, whose probability under the Plackett-Luce
    model does not depend on the ones left out.

    Args:
        completions (`Mapping[int, Hashable]`):
            Completions of one prompt, for example their token ids, by index.
        ranks (`Sequence[int]`):
            Rank of each index.

    Returns:
        `dict[int, str]`

    Example:
    ```python
    >>> from trl_dpo_ext.data.rankings.order import repeated_completions

    >>> repeated_completions({0: "a", 1: "a", 2: "b"}, ranks=[0, 1, 2])
    {1: 'completion 1 is a copy of completion 0'}
    >>> list(repeated_completions({0: "a", 1: "b", 2: "a", 3: "c"}, ranks=[0, 1, 2, 3]))
    [0, 2]

    ```
    """
    places: dict[Hashable, list[int]] = {}
    for place, completion in completions.items():
        places.setdefault(completion, []).append(place)
    left_out = {}
    for copies in places.values():
        best, *others = sorted(copies, key=ranks.__getitem__)
        worst = others[-1] if others else best
        between = [place for place in completions if ranks[best] <= ranks[place] <= ranks[worst]]
        if ranks[best] < ranks[worst] and len(between) > len(copies):
            reason = f"completions {best} and {worst} are the same and others stand between them"
            left_out.update(dict.fromkeys(copies, reason))
        else:
            left_out.update({place: f"completion {place} is a copy of completion {best}" for place in others})
    return dict(sorted(left_out.items()))


def select_completions(row: Mapping[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """A row with the completions at these indices, in that order, and with their ranks, scores and `ref_logps`."""
    return dict(row) | {
        name: [row[name][place] for place in places] for name in PER_COMPLETION_COLUMNS if row.get(name) is not None
    }


def ranking_problem(ranks: Sequence[int], left_out: Mapping[int, str] | None = None) -> str | None:
    """
    Why a ranking carries no preference.

    Args:
        ranks (`Sequence[int]`):
            Ranks of the completions that are left.
        left_out (`Mapping[int, str]`, *optional*):
            Completions left out, with the reasons.

    Returns:
        `str` or `None`: The reason, or `None` if one completion is above another.
    """
    because = f" ({next(iter(left_out.values()))})" if left_out else ""
    if len(ranks) < 2:
        return f"{'one' if ranks else 'no'} completion{' is left' if left_out else ''}{because}"
    if len(set(ranks)) < 2:
        return f"all completions tie{because}"
    return None
