"""Rankings from preference pairs that share a prompt, where the pairs form one consistent order."""

from dataclasses import dataclass, field
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, List, Value
from transformers.utils import logging

from trl_dpo_ext.data.checks import check_columns, preference_problem
from trl_dpo_ext.data.columns import type_of_both


__all__ = ["PairsReport", "pairs_to_rankings"]

logger = logging.get_logger(__name__)

_CONTEXT_COLUMNS = ("prompt", "tools", "chat_template_kwargs")  # what a completion answers


@dataclass(frozen=True)
class PairsReport:
    """
    What [`pairs_to_rankings`] made of a data set of pairs. Rows are numbers of the given data set.

    Args:
        rankings (`int`): Rankings made.
        dropped (`int`): Pairs left out because an answer is empty or both are the same.
        first_dropped (`str`): Number of the first such row, and why.
        cyclic (`list[list[int]]`): For each prompt whose pairs contradict each other, the rows on a cycle.
        incomplete (`list[list[int]]`): For each prompt whose pairs leave open more than ranks with ties can, its rows.
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
    Rankings from preference pairs that share a prompt, where the pairs form one consistent order.

    The preferences of a prompt and what follows from them (a over b and b over c: a over c) must say of any two
    completions which is better, or be silent on a group as a whole: completions that all others stand to alike tie,
    because a tie means that the order is unknown. Any other gap cannot be written as ranks (a over b and c over d, and
    nothing else), nor can a cycle (a over b, b over c, c over a, or two annotators who disagree).

    Args:
        dataset (`Dataset`):
            Preference pairs with a `prompt` column. Pairs belong together if `prompt`, `tools` and
            `chat_template_kwargs` agree.
        unordered (`"drop"` or `"pairs"`, *optional*, defaults to `"drop"`):
            What happens to the pairs of a prompt that form no such order: they are left out, or each becomes a
            ranking of two.
        dataset_name (`str`, *optional*, defaults to `"train"`):
            Name used in messages.

    Returns:
        `tuple[Dataset, PairsReport]`: Rows with `prompt`, `completions` and `ranks` (and `tools` and
        `chat_template_kwargs`), in the order in which prompts first occur, and what could not be ordered.

    Raises:
        ValueError: If the data set streams or has no `prompt` column, a row is malformed, or no ranking is left.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from trl_dpo_ext.data.conversion.from_pairs import pairs_to_rankings

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
        raise ValueError("Pairs of a stream cannot be gathered by prompt. Load the data set without `streaming=True`.")
    check_columns(dataset.column_names, dataset_name)
    if "prompt" not in dataset.column_names:
        raise ValueError(
            f"The {dataset_name} dataset has no column `prompt` to gather pairs by. Add it with "
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
            f"No pairs of the {dataset_name} dataset form a ranking: {dropped} pairs say nothing, those of "
            f"{len(cyclic)} prompts contradict each other and those of {len(incomplete)} leave the order open."
        )
    features = {name: dataset.features[name] for name in context}
    of_answer = type_of_both(dataset.features["chosen"], dataset.features["rejected"])
    features |= {"completions": List(of_answer), "ranks": List(Value("int64"))}
    return Dataset.from_list(rows, features=Features(features)), report


@dataclass
class _Group:
    """The pairs of one prompt, as a graph from the better to the worse completion."""

    context: dict[str, Any]
    completions: list[Any] = field(default_factory=list)
    pairs: list[tuple[int, int, int]] = field(default_factory=list)  # better, worse, number of the row
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
        """For each completion, those that are worse, directly or by what follows."""
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
        """Rows whose pair is contradicted by others, directly or by what follows from them."""
        below = self.below()
        return [index for better, worse, index in self.pairs if better in below[worse]]

    def ranks(self) -> list[int] | None:
        """Rank of each completion, if ranks say what the pairs say and no more."""
        below = self.below()
        num_above = [sum(place in worse for worse in below) for place in range(len(below))]
        ranks = [sorted(set(num_above)).index(num) for num in num_above]
        places = range(len(ranks))
        consistent = all((ranks[i] < ranks[j]) == (j in below[i]) for i in places for j in places)
        return ranks if consistent else None


def _warn_of_pairs(report: PairsReport, unordered: str, dataset_name: str) -> None:
    left_out = "left out" if unordered == "drop" else "kept as rankings of two"
    for groups, why in (
        (report.cyclic, "contradict each other"),
        (report.incomplete, "leave the order of completions open"),
    ):
        if groups:
            logger.warning(
                f"The pairs of {len(groups)} prompts of the {dataset_name} dataset {why} and are {left_out} (first: "
                f"rows {', '.join(map(str, groups[0]))})."
            )
    if report.dropped:
        logger.warning(
            f"{report.dropped} pairs of the {dataset_name} dataset are left out (first: {report.first_dropped})."
        )
