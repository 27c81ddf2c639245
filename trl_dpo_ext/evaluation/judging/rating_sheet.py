"""Rating sheets: CSV files in which people say which of two completions they prefer, without knowing whose it is."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_dpo_ext.evaluation.judging.asking import new_verdict, orders_of
from trl_dpo_ext.evaluation.judging.comparisons import Comparison, text_of_prompt
from trl_dpo_ext.evaluation.judging.judges import Answer, shown
from trl_dpo_ext.evaluation.judging.verdicts import ORDERS, RaterIdentity, Verdict, VerdictFile
from trl_dpo_ext.reward_model.files.row_sources import RowSource
from trl_dpo_ext.whole_file import whole_file


__all__ = ["add_ratings", "read_ratings", "write_rating_sheet"]

_COLUMNS = ("item", "order", "prompt", "A", "B", "preferred", "rater")
_PREFERRED = {"a": "A", "b": "B", "tie": "tie"}


def write_rating_sheet(comparisons: Sequence[Comparison], path: Path, *, seed: int = 0) -> int:
    """
    Writes a CSV file with a row for each comparison, each in a random order.

    People fill in `preferred` (`A`, `B` or `tie`) and `rater` (by default the name of the file).

    Args:
        comparisons (`Sequence[Comparison]`):
            Comparisons.
        path (`Path`):
            File. One that exists is not replaced, because it may be filled in.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the orders.

    Returns:
        `int`: Number of rows.

    Raises:
        ValueError: If the file exists.
    """
    if path.exists():
        raise ValueError(f"The rating sheet {path} exists, and may be filled in. Choose another name.")
    different = {one.item: one for one in comparisons}
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for one in different.values():
            [order] = orders_of(one, "random", seed)
            texts = map(_cell, (text_of_prompt(one.prompt), *shown(one, order)))
            writer.writerow([one.item, order, *texts, "", ""])
    return len(different)


def _cell(text: str) -> str:
    """A text that a spreadsheet does not run as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def read_ratings(source: RowSource, comparisons: Sequence[Comparison], *, rater: str) -> tuple[list[Verdict], int]:
    """
    Reads the ratings of a sheet that people have filled in.

    Args:
        source ([`~trl_dpo_ext.reward_model.files.row_sources.RowSource`]):
            Rows with `item`, `order`, `preferred` and optionally `rater`.
        comparisons (`Sequence[Comparison]`):
            Comparisons that the sheet is about.
        rater (`str`):
            Name of the rater where the sheet names none.

    Returns:
        `tuple[list[Verdict], int]`: Verdicts, and the number of rows in which nothing is filled in.

    Raises:
        ValueError: If a row cannot be read, its item is not among the comparisons, or a value is unknown.
    """
    by_item = {one.item: one for one in comparisons}
    verdicts, num_empty = [], 0
    for part in range(source.num_parts):
        for record in source.read(part):
            where = f"{record.where} of {source.name}"
            if record.problem is not None:
                raise ValueError(f"The rating in {where} cannot be read: {record.problem}.")
            item, order, preferred, name = (
                _text(record.row, column, where) for column in ("item", "order", "preferred", "rater")
            )
            if item not in by_item:
                raise ValueError(
                    f"The item {item!r} in {where} is no comparison of these files. Pass the completions that the "
                    "sheet was written for."
                )
            if order not in ORDERS:
                raise ValueError(f"`order` in {where} is {order!r}. Expected ab or ba, as the sheet was written.")
            if not preferred:
                num_empty += 1
                continue
            if preferred.lower() not in _PREFERRED:
                raise ValueError(f"`preferred` in {where} is {preferred!r}. Expected A, B or tie.")
            answer = Answer(f"Preferred: {_PREFERRED[preferred.lower()]}")
            verdicts.append(new_verdict(by_item[item], RaterIdentity(name or rater, "human"), order, answer))
    return verdicts, num_empty


def _text(row: dict[str, Any], name: str, where: str) -> str:
    if name not in row and name != "rater":
        raise ValueError(f"There is no `{name}` in {where}, only {', '.join(row) or 'no column'}.")
    value = row.get(name)
    return "" if value is None else str(value).strip()


def add_ratings(verdicts: Sequence[Verdict], file: VerdictFile) -> int:
    """Writes the ratings that are not yet in the file, or are changed. Returns their number."""
    new = [verdict for verdict in verdicts if file.get(verdict.key) != verdict]
    for verdict in new:
        file.append(verdict)
    return len(new)
