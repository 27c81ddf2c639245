"""Checks of raw and of tokenized rankings. Errors name the row, the column, what was found and a fix."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from trl_dpo_ext.data.checks import (
    check_columns,
    check_number,
    check_one_kind,
    check_present,
    check_ref_logps,
    settle_prompt,
)
from trl_dpo_ext.data.kinds import other_kind
from trl_dpo_ext.data.messages import check_text
from trl_dpo_ext.data.token_ids import check_ids, check_list
from trl_dpo_ext.spelling import likely_column, misspelt_column


__all__ = [
    "TOKENIZED_RANKING_COLUMNS",
    "check_ranking",
    "check_ranking_columns",
    "check_ranking_options",
    "check_tie_gap",
]

TOKENIZED_RANKING_COLUMNS = ("prompt_ids", "completion_ids", "ranks")  # `ranks` may be left out: best first


def check_ranking_columns(columns: Sequence[str], dataset_name: str) -> None:
    """
    Checks that a ranking, a scored or a preference dataset has its columns.

    Args:
        columns (`Sequence[str]`):
            Column names found.
        dataset_name (`str`):
            Name used in messages.

    Raises:
        ValueError: If a column is missing or misspelt, or the dataset is both a ranking and a preference dataset.
    """
    check_one_kind(columns, dataset_name)
    found = set(columns)
    if {"prompt_ids", "completion_ids"} <= found:
        return
    if "completions" in found:
        if "labels" in found:
            raise ValueError(f"The {dataset_name} dataset has `completions` and `labels`. {other_kind(columns)}")
        names = ["prompt"] + ([] if found & {"ranks", "scores"} else ["ranks", "scores"])
        for name in names:
            similar = None if name in found else misspelt_column(name, columns)
            if similar:
                why = "it is the common start of all completions" if name == "prompt" else "completions are best first"
                raise ValueError(
                    f"The {dataset_name} dataset has no column `{name}`, but one named `{similar}`. Rename it with "
                    f"`dataset.rename_column`, or remove it if {why}."
                )
    elif found & {"chosen", "rejected", "chosen_ids", "rejected_ids"}:
        check_columns(columns, dataset_name)
    elif "completion_ids" in found:
        raise ValueError(
            f"The {dataset_name} dataset has the column `completion_ids` but not `prompt_ids`; found "
            f"{', '.join(columns)}. A tokenized ranking needs both."
        )
    else:
        kind = other_kind(columns)
        similar = None if kind else likely_column("completions", columns)
        hint = f" Is it `{similar}`? Rename it with `dataset.rename_column`." if similar else ""
        hint += f" {kind}" if kind else ""
        raise ValueError(
            f"The {dataset_name} dataset has no column `completions`. A ranking dataset needs `completions`, "
            "optionally `ranks` or `scores` and, unless all completions start with it, `prompt`; a preference data "
            f"set needs `chosen` and `rejected`; found {', '.join(columns)}.{hint}"
        )


def check_ranking(row: Mapping[str, Any], where: str, max_completions: int | None = None) -> None:
    """
    Checks the values of one ranking. Preference pairs are checked by [`~trl_dpo_ext.data.checks.preference_problem`].

    Args:
        row (`Mapping`):
            Row with `completions`, or with `prompt_ids` and `completion_ids`, and optionally `prompt`, `ranks`,
            `scores` and `ref_logps`.
        where (`str`):
            The row's name in messages.
        max_completions (`int`, *optional*):
            Most completions that a row may have.

    Raises:
        ValueError: If a value is missing, of the wrong kind, or contradicts another value.
    """
    if "completion_ids" in row:
        column = "completion_ids"
        check_present(row, ("prompt_ids",), where)
        check_ids(row["prompt_ids"], "prompt_ids", where)
        check_list(row[column], column, where, "a list of token id lists")
        for place, ids in enumerate(row[column]):
            check_ids(ids, f"{column}[{place}]", where)
        if row.get("completions") is not None:  # carried along
            check_list(row["completions"], "completions", where, "a list of texts or of message lists, best first")
            _check_size(row["completions"], "completions", column, len(row[column]), where)
    else:
        column = "completions"
        check_list(row[column], column, where, "a list of texts or of message lists, best first")
        _check_texts(row, where)

    size = len(row[column])
    if max_completions is not None and size > max_completions:
        raise ValueError(
            f"`{column}` in {where} has {size} entries but `max_completions={max_completions}`. Raise "
            "`max_completions`, or drop such rows with `dataset.filter`."
        )
    _check_order(row, column, size, where)
    check_ref_logps(row, where, size, f"`{column}`")


def check_tie_gap(tie_gap: float) -> None:
    """
    Checks a `score_tie_gap`.

    Raises:
        ValueError: If it is negative or not a finite number.
    """
    if not (isinstance(tie_gap, Real) and math.isfinite(tie_gap) and tie_gap >= 0):
        raise ValueError(f"`score_tie_gap={tie_gap!r}` must be a number of 0 or more.")


def check_ranking_options(score_tie_gap: float, max_completions: int | None) -> None:
    """Raises a `ValueError` if an option of rankings has a value that does not exist."""
    check_tie_gap(score_tie_gap)
    if max_completions is not None and max_completions < 2:
        raise ValueError(f"`max_completions={max_completions}` must be 2 or more: a ranking compares completions.")


def _check_texts(row: Mapping[str, Any], where: str) -> None:
    entries = {f"completions[{place}]": value for place, value in enumerate(row["completions"])}
    if "prompt" in row:
        entries = {"prompt": row["prompt"], **entries}
    for name, value in entries.items():
        _check_text(value, name, where)
    prompt = entries.pop("prompt", None)
    settle_prompt(prompt, entries, where, repeats=False)


def _check_text(value: Any, name: str, where: str) -> None:
    if isinstance(value, Mapping):
        hint = (
            "Put each completion's messages into a list of their own."
            if "role" in value
            else "For UltraFeedback, Nectar and others, `trl_dpo_ext.data` has `from_ultrafeedback` and others."
        )
        raise ValueError(
            f"`{name}` in {where} is a dict with the keys {', '.join(map(str, value))}. Expected text, or a list of "
            f"messages. {hint}"
        )
    check_text(value, name, where)


def _check_order(row: Mapping[str, Any], column: str, size: int, where: str) -> None:
    # A dataset that was concatenated from two kinds has both columns, and None in one of them
    ranks, scores = row.get("ranks"), row.get("scores")
    given = [name for name in ("ranks", "scores") if name in row]
    if given and ranks is None and scores is None:
        raise ValueError(
            f"{_names(given)} in {where} {'are' if len(given) > 1 else 'is'} None. Give a value for every completion, "
            "or remove the column if completions are best first."
        )
    if ranks is not None:
        check_list(ranks, "ranks", where, "a list of whole numbers, one for each completion")
        _check_size(ranks, "ranks", column, size, where)
        for place, rank in enumerate(ranks):
            if rank is not None and (not isinstance(rank, Integral) or isinstance(rank, bool) or rank < 0):
                raise ValueError(
                    f"`ranks[{place}]` in {where} is {rank!r}. Ranks are integers of 0 (best) or more, or None for a "
                    "completion that nobody ranked: cast them. Numbers where higher is better belong into `scores`."
                )
    if scores is not None:
        _check_numbers(scores, "scores", column, size, where)
    if ranks is not None and scores is not None:
        _check_direction(ranks, scores, where)


def _check_numbers(values: Any, name: str, column: str, size: int, where: str) -> None:
    check_list(values, name, where, "a list of numbers, one for each completion")
    _check_size(values, name, column, size, where)
    for place, value in enumerate(values):
        advice = (
            "Expected a finite number for every completion. Leave out the completions without one, or drop such rows "
            "with `dataset.filter`."
        )
        check_number(value, f"{name}[{place}]", where, advice)


def _check_size(values: list[Any], name: str, column: str, size: int, where: str) -> None:
    if len(values) != size:
        raise ValueError(
            f"`{name}` in {where} has {len(values)} entries but `{column}` has {size}. Give one for each completion."
        )


def _check_direction(ranks: list[int | None], scores: list[float], where: str) -> None:
    places = [math.inf if rank is None else rank for rank in ranks]
    pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if places[i] < places[j]]
    against = [(i, j) for i, j in pairs if scores[i] < scores[j]]
    if not against:
        return
    i, j = against[0]
    found = (
        f"completion {i} has rank {ranks[i]} and score {scores[i]}, completion {j} has rank {ranks[j]} and score "
        f"{scores[j]}"
    )
    if any(scores[i] > scores[j] for i, j in pairs):
        raise ValueError(
            f"`ranks` and `scores` in {where} contradict each other: {found}. Remove the column that you trust less "
            "with `dataset.remove_columns`."
        )
    raise ValueError(
        f"The rank direction contradicts the scores in {where}: {found}. Rank 0 is the best, and a higher score is "
        "better. Turn the ranks round or the scores' sign, or remove one of the two columns."
    )


def _names(columns: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in columns)
