"""Conversion of preference pairs with the same prompt to rankings, if they form a consistent order."""

from dataclasses import dataclass, field
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, List, Value
from transformers.utils import logging

from trl_dpo_ext.data.checks import check_columns, preference_problem
from trl_dpo_ext.data.columns import type_of_both


__all__ = ["PairsReport", "pairs_to_rankings"]

logger = logging.get_logger(__name__)

_CONTEXT_COLUMNS = ("prompt", "tools", "chat_template_kwargs")  # columns that completions depend on


@dataclass(frozen=True)
class PairsReport:
    """
    Result of [`pairs_to_rankings`]. Rows are indices of the given dataset.

    Args:
        rankings (`int`): Number of rankings.
        dropped (`int`): Number of pairs that were dropped because an answer is empty or both are the same.
        first_dropped (`str`): Index of the first such row, and the reason.
        cyclic (`list[list[int]]`): For each prompt whose pairs contradict each other, the rows on a cycle.
        incomplete (`list[list[int]]`): For each prompt whose order is more incomplete than ties can express, its rows.
    """

    rankings: int
    dropped: int = 0
    first_dropped: str = ""
    cyclic: list[list[int]] = field(default_factory=list)
    incomplete: list[list[int]] = field(default_factory=list)


def pairs_to_rankings(
    dataset: Dataset, *, unordered: Literal["drop", "pairs"] = "drop", dataset_name: str = "train"
) -> tuple[Dataset, PairsReport]:
    """
    Converts preference pairs with the same prompt to rankings, if they form a consistent order.

    The preferences of a prompt are completed by transitivity: a over b and b over c give a over c. Completions whose
    order remains unknown tie if they have the same relation to all others. Pairs cannot be written as ranks if there
    are other gaps (only a over b and c over d) or cycles (a over b, b over c and c over a, or annotators disagree).

    Args:
        dataset (`Dataset`):
            Preference pairs with a `prompt` column. Pairs are grouped by `prompt`, `tools` and
            `chat_template_kwargs`.
        unordered (`"drop"` or `"pairs"`, *optional*, defaults to `"drop"`):
            What to do with pairs that form no such order: drop them, or convert each to a ranking of two completions.
        dataset_name (`str`, *optional*, defaults to `"train"`):
            Name of the dataset in messages.

    Returns:
        `tuple[Dataset, PairsReport]`: Rows with `prompt`, `completions` and `ranks` (and `tools` and
        `chat_template_kwargs`), in the order in which prompts first occur, and a report on the other pairs.

    Raises:
        ValueError: If the dataset is streaming or has no `prompt` column, a row is invalid, or there is no ranking.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from trl_dpo_ext.data import pairs_to_rankings

    >>> pairs = [(" 4", " 5"), (" 5", " 6"), (" 5", " 7")]
    >>> rows = [{"prompt": "2 + 2 =", "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]
    >>> rankings, report = pairs_to_rankings(Dataset.from_list(rows))
    >>> rankings[0]
    {'prompt': '2 + 2 =', 'completions': [' 4', ' 5', ' 6', ' 7'], 'ranks': [0, 1, 2, 2]}

    ```
    """
    if unordered not in ("drop", "pairs"):
        raise ValueError(f"`unordered={unordered!r}` does not exist. Choose one of 'drop', 'pairs'.")
    if isinstance(dataset, IterableDataset):
        raise ValueError("Pairs of a streaming dataset cannot be grouped by prompt. Load it without `streaming=True`.")
    check_columns(dataset.column_names, dataset_name)
    if "prompt" not in dataset.column_names:
        raise ValueError(
            f"The {dataset_name} dataset has no column `prompt` to group pairs by. Add it with "
            "`dataset.map(trl_dpo_ext.data.prompts.split_prompt)`."
        )
    context = [name for name in _CONTEXT_COLUMNS if name in dataset.column_names]
    groups: dict[str, _Group] = {}
    dropped, first_dropped = 0, ""
    for index, row in enumerate(dataset.select_columns([*context, "chosen", "rejected"])):
        if problem := preference_problem(row, index, dataset_name):
            dropped, first_dropped = dropped + 1, first_dropped or f"row {index}, {problem}"
            continue
        key = repr([row[name] for name in context])
        group = groups.setdefault(key, _Group({name: row[name] for name in context}))
        group.add(row["chosen"], row["rejected"], index)

    rows: list[dict[str, Any]] = []
    cyclic: list[list[int]] = []
    incomplete: list[list[int]] = []
    for group in groups.values():
        cycle, ranks = group.cycle(), group.ranks()
        if ranks is not None:
            order = sorted(range(len(ranks)), key=ranks.__getitem__)
            completions = [group.completions[place] for place in order]
            rows.append(group.context | {"completions": completions, "ranks": sorted(ranks)})
            continue
        (cyclic if cycle else incomplete).append(cycle or [index for _, _, index in group.pairs])
        if unordered == "pairs":
            pairs = {(better, worse): None for better, worse, _ in group.pairs}
            for pair in pairs:
                completions = [group.completions[place] for place in pair]
                rows.append(group.context | {"completions": completions, "ranks": [0, 1]})
    report = PairsReport(len(rows), dropped, first_dropped, cyclic, incomplete)
    _warn_of_pairs(report, unordered, dataset_name)
    if not rows:
        raise ValueError(
            f"No pairs of the {dataset_name} dataset form a ranking: {dropped} pairs have no preference, those of "
            f"{len(cyclic)} prompts contradict each other and those of {len(incomplete)} do not determine an order."
        )
    features = {name: dataset.features[name] for name in context}
    of_answer = type_of_both(dataset.features["chosen"], dataset.features["rejected"])
    features |= {"completions": List(of_answer), "ranks": List(Value("int64"))}
    return Dataset.from_list(rows, features=Features(features)), report


@dataclass
class _Group:
    """Pairs of a prompt, as a graph from better to worse completions."""

    context: dict[str, Any]
    completions: list[Any] = field(default_factory=list)
    pairs: list[tuple[int, int, int]] = field(default_factory=list)  # better, worse, index of the row
    _places: dict[str, int] = field(default_factory=dict)

    def add(self, chosen: Any, rejected: Any, index: int) -> None:
        better, worse = self._place(chosen), self._place(rejected)
        self.pairs.append((better, worse, index))

    def _place(self, completion: Any) -> int:
        key = repr(completion)
        if key not in self._places:
            self._places[key] = len(self.completions)
            self.completions.append(completion)
        return self._places[key]

    def below(self) -> list[set[int]]:
        """Returns for each completion those that are worse, directly or by transitivity."""
        direct: list[set[int]] = [set() for _ in self.completions]
        for better, worse, _ in self.pairs:
            direct[better].add(worse)
        closed = []
        for place in range(len(direct)):
            found: set[int] = set()
            ahead = set(direct[place])
            while ahead:
                found |= ahead
                ahead = set().union(*(direct[worse] for worse in ahead)) - found
            closed.append(found)
        return closed

    def cycle(self) -> list[int]:
        """Returns the rows whose pair is contradicted by others, directly or by transitivity."""
        below = self.below()
        return [index for better, worse, index in self.pairs if better in below[worse]]

    def ranks(self) -> list[int] | None:
        """Returns the rank of each completion, if ranks can express exactly the given pairs."""
        below = self.below()
        num_above = [sum(place in worse for worse in below) for place in range(len(below))]
        ranks = [sorted(set(num_above)).index(num) for num in num_above]
        places = range(len(ranks))
        consistent = all((ranks[i] < ranks[j]) == (j in below[i]) for i in places for j in places)
        return ranks if consistent else None


def _warn_of_pairs(report: PairsReport, unordered: str, dataset_name: str) -> None:
    left_out = "dropped" if unordered == "drop" else "kept as rankings of two"
    for groups, why in (
        (report.cyclic, "contradict each other"),
        (report.incomplete, "do not determine the order of completions"),
    ):
        if groups:
            logger.warning(
                f"The pairs of {len(groups)} prompts of the {dataset_name} dataset {why} and are {left_out} (first: "
                f"rows {', '.join(map(str, groups[0]))})."
            )
    if report.dropped:
        logger.warning(
            f"{report.dropped} pairs of the {dataset_name} dataset are dropped (first: {report.first_dropped})."
        )
