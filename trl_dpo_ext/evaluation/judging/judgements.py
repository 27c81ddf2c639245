"""Judgements: which of two completions a person or a judge preferred."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trl_dpo_ext.reward_model.files.row_sources import RowSource
from trl_dpo_ext.spelling import did_you_mean, likely_column


__all__ = ["FAILED", "TIE", "UNPARSABLE", "VERDICTS", "Judgement", "read_judgements"]

TIE, UNPARSABLE, FAILED = "tie", "unparsable", "failed"
# Preferred: the first completion, the second, neither; an answer that says none of these, and no answer
VERDICTS = ("a", "b", TIE, UNPARSABLE, FAILED)
_KINDS = ("human", "judge")


@dataclass(frozen=True)
class Judgement:
    """
    A verdict of one rater on one comparison.

    Args:
        item (`str`):
            Comparison: a pair of completions, the same for all raters.
        rater (`str`):
            Person or judge.
        verdict (`str`):
            `"a"`, `"b"`, `"tie"`, `"unparsable"` or `"failed"`.
        kind (`str`, *optional*, defaults to `"human"`):
            `"human"` or `"judge"`.
    """

    item: str
    rater: str
    verdict: str
    kind: str = "human"


def read_judgements(source: RowSource) -> list[Judgement]:
    """
    Reads judgements.

    Args:
        source ([`~trl_dpo_ext.reward_model.files.row_sources.RowSource`]):
            Rows with `item`, `rater`, `verdict` and optionally `kind`.

    Raises:
        ValueError: If a row cannot be read, a column is missing, a value is unknown, a rater judges an item twice, or
            has two kinds.
    """
    judgements: list[Judgement] = []
    found: dict[tuple[str, str], str] = {}
    kinds: dict[str, str] = {}
    for part in range(source.num_parts):
        for record in source.read(part):
            where = f"{record.where} of {source.name}"
            if record.problem is not None:
                raise ValueError(f"The judgement in {where} cannot be read: {record.problem}.")
            judgement = _judgement(record.row, where)
            key = (judgement.item, judgement.rater)
            if key in found:
                raise ValueError(
                    f"`{judgement.rater}` judges the item `{judgement.item}` twice, in {found[key]} and in {where}. "
                    "Keep one verdict of each rater."
                )
            found[key] = where
            kind = kinds.setdefault(judgement.rater, judgement.kind)
            if kind != judgement.kind:
                raise ValueError(f"The rater `{judgement.rater}` is a {kind}, and a {judgement.kind} in {where}.")
            judgements.append(judgement)
    return judgements


def _judgement(row: Mapping[str, Any], where: str) -> Judgement:
    item, rater = (_text(row, name, where) for name in ("item", "rater"))
    verdict = _one_of(_text(row, "verdict", where), VERDICTS, "verdict", where)
    kind = "human" if row.get("kind") is None else _one_of(str(row["kind"]), _KINDS, "kind", where)
    return Judgement(item, rater, verdict, kind)


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        similar = likely_column(name, row)
        hint = f" Is it `{similar}`? Rename it to `{name}`." if similar else ""
        raise ValueError(f"There is no `{name}` in {where}, only {', '.join(row) or 'no column'}.{hint}")
    text = "" if row[name] is None else str(row[name]).strip()
    if not text:
        raise ValueError(f"`{name}` in {where} is empty.")
    return text


def _one_of(value: str, known: tuple[str, ...], name: str, where: str) -> str:
    if value.lower() not in known:
        expected = ", ".join(known)
        raise ValueError(
            f"`{name}` in {where} is {value!r}. Expected one of {expected}.{did_you_mean(value, known, repr)}"
        )
    return value.lower()
