"""Checks that compare rows: duplicates, contradictions, overlap with the held-out split, frequent answers, scores."""

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import combinations
from numbers import Real
from typing import Any

from trl_dpo_ext.data.doctor.findings import NOTE, WARNING, Check, Finding
from trl_dpo_ext.data.doctor.prepared_row import PreparedRow, text_of


__all__ = [
    "BothDirections",
    "ConstantAnswers",
    "DuplicatePrompts",
    "DuplicateRows",
    "HeldOutPrompts",
    "ScoresAgainstOrder",
    "StockOpening",
    "Ties",
]

_OPENING_WORDS = 5
_STOCK_SHARE, _STOCK_ROWS = 0.05, 10
_CONSTANT_SHARE = 0.9


class DuplicateRows(Check):
    name = "duplicate-rows"
    severity = WARNING
    meaning = "The row repeats an earlier row (same prompt, answers and order)."
    fix = "Drop the duplicates, because repeated rows have more weight."

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[Any, int] = {}

    def found(self, row: PreparedRow) -> str | None:
        first = self.first.setdefault((row.prompt_key, *row.completion_keys, *row.ranks), row.index)
        return None if first == row.index else f"row {row.index} is row {first}"


class DuplicatePrompts(Check):
    name = "duplicate-prompts"
    severity = NOTE
    meaning = "The row repeats the prompt of an earlier row, with other answers."
    fix = (
        "None needed if the prompt has several answers. Keep its rows in one split. "
        "`trl_dpo_ext.data.pairs_to_rankings` converts such pairs to rankings."
    )

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[int, tuple[int, list[int]]] = {}

    def found(self, row: PreparedRow) -> str | None:
        first, answers = self.first.setdefault(row.prompt_key, (row.index, row.completion_keys))
        copy = answers == row.completion_keys
        return None if copy else f"row {row.index} has the prompt of row {first}"


class BothDirections(Check):
    name = "contradictions"
    severity = WARNING
    meaning = "Two rows with the same prompt and answers prefer opposite answers."
    fix = "Drop both rows, or the less reliable one, because their gradients cancel."

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[tuple[int, int, int], int] = {}

    def found(self, row: PreparedRow) -> str | None:
        example = None
        for (better, rank), (worse, lower) in combinations(zip(row.completion_keys, row.ranks, strict=True), 2):
            if rank < lower:
                self.first.setdefault((row.prompt_key, better, worse), row.index)
                reversed_in = self.first.get((row.prompt_key, worse, better))
                if reversed_in is not None and example is None:
                    example = f"row {row.index} contradicts row {reversed_in}"
        return example


class HeldOutPrompts(Check):
    name = "held-out-prompts"
    severity = WARNING
    meaning = "The prompt is also in the held-out split, so evaluation there is not on unseen prompts."
    fix = "Drop these rows from one of the splits."

    def __init__(self, prompts: AbstractSet[int]) -> None:
        super().__init__()
        self.prompts = prompts

    def found(self, row: PreparedRow) -> str | None:
        return "" if row.prompt_key in self.prompts else None


class StockOpening(Check):
    name = "stock-opening"
    severity = NOTE
    meaning = f"Many preferred answers start with the same {_OPENING_WORDS} words."
    fix = "Check that this opening is intended. The model learns first what all preferred answers share."

    def __init__(self) -> None:
        super().__init__()
        self.openings: dict[str, Finding] = {}
        self.rows = 0

    def found(self, row: PreparedRow) -> str | None:
        if row.completions:
            self.rows += 1
            preferred = row.completions[0]
            start = text_of(preferred if isinstance(preferred, str) else preferred[:1])
            opening = " ".join(start.split()[:_OPENING_WORDS])
            if opening not in self.openings:
                self.openings[opening] = self.new_finding()
            self.openings[opening].add(row.index, repr(opening))
        return None

    def findings(self) -> list[Finding]:
        least = max(_STOCK_ROWS, _STOCK_SHARE * self.rows)
        return [finding for finding in self.openings.values() if finding.count >= least]


class ConstantAnswers(Check):
    name = "constant-answer"
    severity = WARNING
    meaning = "The {} answer is the same for nearly all prompts, so it alone determines the order."
    fix = "Check that the column was filled as intended."

    def __init__(self) -> None:
        super().__init__()
        self.sides = {"best": Counter[int](), "worst": Counter[int]()}
        self.first: dict[int, tuple[int, str]] = {}
        self.prompts: set[int] = set()

    def found(self, row: PreparedRow) -> str | None:
        if row.prompt_key in self.prompts:  # the prompt is counted once
            return None
        self.prompts.add(row.prompt_key)
        for counter, place in zip(self.sides.values(), (0, -1), strict=True):
            key = row.completion_keys[place]
            counter[key] += 1
            if key not in self.first:
                self.first[key] = row.index, text_of(row.completions[place])[:40] if row.completions else ""
        return None

    def findings(self) -> list[Finding]:
        found = []
        for side, counter in self.sides.items():
            ((key, count),) = counter.most_common(1) or [(0, 0)]
            if count >= max(_STOCK_ROWS, _CONSTANT_SHARE * counter.total()):
                index, text = self.first[key]
                meaning = self.meaning.format(side)
                found.append(Finding(self.name, self.severity, meaning, self.fix, count, [index], repr(text)))
        return found


class Ties(Check):
    name = "ties"
    severity = NOTE
    meaning = "Completions of a row tie. Their order is treated as unknown."
    fix = "None needed if they are equally good."

    def found(self, row: PreparedRow) -> str | None:
        return str(row.ranks) if len(set(row.ranks)) < len(row.ranks) else None


class ScoresAgainstOrder(Check):
    """Compares the order of the best and the worst completion with columns of scores that training does not read."""

    name = "scores-against-order"
    severity = WARNING
    meaning = "A column of scores contradicts the order that training uses."
    fix = "Decide which of the two is right. Then reverse the order, or drop these rows."

    def __init__(self, columns: Sequence[str]) -> None:
        super().__init__()
        self.sides = {
            name: name.replace("chosen", "rejected")
            for name in columns
            if "chosen" in name and name.replace("chosen", "rejected") in columns and _is_score(name)
        }
        known = {"completions", "ranks", "scores", "ref_logps"}
        self.lists = [name for name in columns if name not in known and _is_score(name)]
        self.rows = self.shorter = 0

    def found(self, row: PreparedRow) -> str | None:
        differences = {**self._of_pair(row.raw), **self._of_list(row.raw)}
        self.rows += bool(differences)
        found = next((f"`{name}`: {what}" for name, (what, against) in differences.items() if against), None)
        self.shorter += found is not None and len(row.completion_ids[0]) < len(row.completion_ids[-1])
        return found

    def findings(self) -> list[Finding]:
        count = self.finding.count
        if 2 * count <= self.rows:
            return super().findings()
        more = "This is the case in most rows, so the order may be reversed."
        if 2 * self.shorter > count:
            more += f" The preferred answer is also shorter in {self.shorter} of these {count} rows."
        return [replace(self.finding, meaning=f"{self.meaning} {more}")]

    def _of_pair(self, row: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
        return {
            chosen: _compare(chosen, row[chosen], row[rejected])
            for chosen, rejected in self.sides.items()
            if _is_number(row[chosen]) and _is_number(row[rejected]) and row[chosen] != row[rejected]
        }

    def _of_list(self, row: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
        # Completions are best first, unless the row has ranks or scores
        completions = row.get("completions")
        if not completions or row.get("ranks") is not None or row.get("scores") is not None:
            return {}
        return {
            name: _compare(name, row[name][0], row[name][-1])
            for name in self.lists
            if isinstance(row[name], list)
            and len(row[name]) == len(completions)
            and _is_number(row[name][0])
            and _is_number(row[name][-1])
            and row[name][0] != row[name][-1]
        }


def _is_score(name: str) -> bool:
    return any(word in name.lower() for word in ("score", "reward", "rating", "rank"))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _compare(name: str, best: Any, worst: Any) -> tuple[str, bool]:
    against = best > worst if "rank" in name.lower() else best < worst
    return f"{best} for the best, {worst} for the worst", against
