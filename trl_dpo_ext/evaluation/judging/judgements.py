"""Judgements: which of two completions a person or a judge preferred."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trl_dpo_ext.reward_model.files.row_sources import RowSource
from trl_dpo_ext.spelling import did_you_mean, likely_column


__all__ = ["FAILED", "TIE", "UNPARSABLE", "VERDICTS", "Judgement", "read_judgements", "required_value", "score_of"]

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


_SCORES = {"a": 1.0, TIE: 0.5, "b": 0.0}


def score_of(verdict: str) -> float | None:
    """Returns 1 if `a` is preferred, 0 if `b` is, 1/2 for a tie, and `None` without a preference."""
    return _SCORES.get(verdict)


def read_judgements(source: RowSource) -> list[Judgement]:
    """
    Reads judgements.

    Args:
        source ([`~trl_dpo_ext.reward_model.files.row_sources.RowSource`]):
            Rows with `item`, `rater`, `verdict` and optionally `kind` and `order`, as `trl-dpo-ext win-rate` writes
            them.

    Returns:
        `list[Judgement]`: One of each rater and item. Verdicts of a rater on the same item in two orders are one:
        `"a"` if `a` is preferred in both, or in one with a tie in the other, `"b"` likewise, and else a tie. One that
        is unparsable or failed does not count beside another. Of several lines with the same `order` the last one
        counts.

    Raises:
        ValueError: If a row cannot be read, a column is missing, a value is unknown, a rater without `order` judges
            an item twice, or a rater has two kinds.
    """
    found: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}  # verdict and place, by item, rater and order
    kinds: dict[str, str] = {}
    for part in range(source.num_parts):
        for record in source.read(part):
            where = f"{record.where} of {source.name}"
            if record.problem is not None:
                raise ValueError(f"The judgement in {where} cannot be read: {record.problem}.")
            judgement = _judgement(record.row, where)
            of_rater = found.setdefault((judgement.item, judgement.rater), {})
            order = str(record.row.get("order"))
            if order in of_rater and "order" not in record.row:
                raise ValueError(
                    f"`{judgement.rater}` judges the item `{judgement.item}` twice, in {of_rater[order][1]} and in "
                    f"{where}. Keep one verdict of each rater."
                )
            of_rater[order] = (judgement.verdict, where)
            kind = kinds.setdefault(judgement.rater, judgement.kind)
            if kind != judgement.kind:
                raise ValueError(f"The rater `{judgement.rater}` is a {kind}, and a {judgement.kind} in {where}.")
    return [
        Judgement(item, rater, _one_verdict([verdict for verdict, _ in of_orders.values()]), kinds[rater])
        for (item, rater), of_orders in found.items()
    ]


def _one_verdict(verdicts: list[str]) -> str:
    """The verdict of several orders."""
    scores = [score for verdict in verdicts if (score := score_of(verdict)) is not None]
    if not scores:
        return verdicts[0]
    mean = sum(scores) / len(scores)
    return TIE if mean == 0.5 else "a" if mean > 0.5 else "b"


def _judgement(row: Mapping[str, Any], where: str) -> Judgement:
    item, rater = (_text(row, name, where) for name in ("item", "rater"))
    verdict = _one_of(_text(row, "verdict", where), VERDICTS, "verdict", where)
    kind = "human" if row.get("kind") is None else _one_of(str(row["kind"]), _KINDS, "kind", where)
    return Judgement(item, rater, verdict, kind)


def required_value(row: Mapping[str, Any], name: str, where: str) -> Any:
    """
    Returns the value of a column.

    Raises:
        ValueError: If there is no such column. The message names a similar one.
    """
    if name not in row:
        similar = likely_column(name, row)
        hint = f" Is it `{similar}`? Rename it to `{name}`." if similar else ""
        raise ValueError(f"There is no `{name}` in {where}, only {', '.join(row) or 'no column'}.{hint}")
    return row[name]


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = required_value(row, name, where)
    text = "" if value is None else str(value).strip()
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
