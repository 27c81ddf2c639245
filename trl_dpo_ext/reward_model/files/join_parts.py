"""Joining of scored parts to one file of rows with rewards, and one of rows that could not be scored."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from trl_dpo_ext.reward_model.files.parts import ScoredParts, ScoredRow
from trl_dpo_ext.reward_model.files.row_sources import Record, Rows, RowSource
from trl_dpo_ext.reward_model.reward_columns import as_columns, reward_columns
from trl_dpo_ext.whole_file import whole_file


__all__ = ["ScoredFile", "check_parquet", "join_parts", "to_json"]

_PROBLEMS_SHOWN = 5


@dataclass
class ScoredFile:
    """
    Files written by [`~trl_dpo_ext.reward_model.score_file`], and their numbers of rows.

    Args:
        output (`Path`, *optional*):
            File with the scored rows, or `None` without any.
        errors (`Path`, *optional*):
            File with the rows that could not be scored, or `None` without any.
        scored (`int`):
            Number of rows with rewards.
        not_scored (`int`):
            Number of rows without rewards.
        cut (`int`):
            Number of scored rows that exceed `max_length`.
        problems (`list[str]`):
            Problems of the first rows that could not be scored.
    """

    output: Path | None = None
    errors: Path | None = None
    scored: int = 0
    not_scored: int = 0
    cut: int = 0
    problems: list[str] = field(default_factory=list)


def join_parts(source: RowSource, parts: ScoredParts, output: Path) -> ScoredFile:
    """
    Writes the rows of a source with their rewards, and rows without rewards to `<output>.errors.jsonl`.

    Args:
        source ([`~trl_dpo_ext.reward_model.files.row_sources.RowSource`]):
            Rows.
        parts ([`~trl_dpo_ext.reward_model.files.parts.ScoredParts`]):
            Their results, in all parts.
        output (`Path`):
            `.jsonl` or `.parquet` file.

    Returns:
        [`ScoredFile`]

    Raises:
        ValueError: If a part is missing, or the rows cannot be written in this format.
    """
    result = ScoredFile()
    errors_output = Path(f"{output}.errors.jsonl")
    with whole_file(errors_output, parts.folder) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for record, row in _all_rows(source, parts):
            if row.problem is None:
                result.scored += 1
                result.cut += row.cut
                continue
            result.not_scored += 1
            if len(result.problems) < _PROBLEMS_SHOWN:
                result.problems.append(f"{record.where}: {row.problem}")
            place = {"row": record.number} | ({} if record.line is None else {"line": record.line})
            raw = "values" if record.line is None else "text"
            entry = place | {"error": row.problem, raw: record.raw}
            file.write(json.dumps(entry, default=str) + "\n")
    if result.not_scored:
        result.errors = errors_output
    else:
        errors_output.unlink()
    if result.scored:
        with whole_file(output, parts.folder) as unfinished:
            if output.suffix == ".jsonl":
                _write_json_lines(source, parts, unfinished)
            elif isinstance(source, Rows) and isinstance(source.rows, Dataset):
                _write_dataset(source.rows, source, parts, unfinished)
            else:
                _write_parquet(source, parts, unfinished)
        result.output = output
    return result


def to_json(row: dict[str, Any]) -> str:
    """
    Returns a row as a line of JSON.

    Raises:
        ValueError: If a value cannot be written as JSON.
    """
    try:
        line = json.dumps(row, ensure_ascii=False) + "\n"
    except TypeError as error:
        raise ValueError(f"The rows cannot be written as JSON: {error}. Use a .parquet file.") from error
    # JSON can escape half of a surrogate pair, but UTF-8 cannot encode it
    return line if _is_unicode(line) else json.dumps(row) + "\n"


def check_parquet(dataset: Dataset) -> None:
    """
    Checks that the columns of a dataset can be written as Parquet.

    Raises:
        ValueError: If a type is not supported, such as a dict without keys.
    """
    try:
        dataset.select([0]).to_parquet(BytesIO())
    except pa.ArrowException as error:
        raise ValueError(
            f"The rows cannot be written as Parquet: {str(error).rstrip('.')}. Use a .jsonl file."
        ) from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rows_of(source: RowSource, parts: ScoredParts, part: int) -> Iterator[tuple[Record, ScoredRow]]:
    scored = parts.read(part, source.numbers_of(part))
    if scored is None:
        raise ValueError(
            f"Part {part} is not in {parts.folder}, although its process has finished. The output folder must be "
            "accessible to all processes."
        )
    return zip(source.read(part), scored, strict=True)


def _all_rows(source: RowSource, parts: ScoredParts) -> Iterator[tuple[Record, ScoredRow]]:
    for part in range(source.num_parts):
        yield from _rows_of(source, parts, part)


def _complete(rows: Iterator[tuple[Record, ScoredRow]]) -> Iterator[dict[str, Any]]:
    for record, row in rows:
        if row.rewards is not None:
            yield record.row | as_columns(row.rewards, reward_columns(list(record.row)))


def _write_json_lines(source: RowSource, parts: ScoredParts, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(map(to_json, _complete(_all_rows(source, parts))))


def _write_dataset(dataset: Dataset, source: RowSource, parts: ScoredParts, path: Path) -> None:
    # Every column keeps its type
    scored = [row for part in range(source.num_parts) for row in parts.read(part, source.numbers_of(part)) or []]
    good = [(row.number, row.rewards) for row in scored if row.rewards is not None]
    names = reward_columns(dataset.column_names)
    if len(good) < len(dataset):
        dataset = dataset.select([number for number, _ in good])
    columns = [as_columns(rewards, names) for _, rewards in good]
    for name in names:
        if name in dataset.column_names:
            dataset = dataset.remove_columns(name)
        dataset = dataset.add_column(name, [values[name] for values in columns])
    dataset.to_parquet(path)


def _write_parquet(source: RowSource, parts: ScoredParts, path: Path) -> None:
    try:
        found = [_as_array(source, parts, part).type for part in range(source.num_parts)]
        schema = pa.unify_schemas([pa.schema(list(fields)) for fields in found], promote_options="permissive")
        with pq.ParquetWriter(path, schema) as file:
            for part in range(source.num_parts):
                rows = _as_array(source, parts, part, pa.struct(list(schema)))
                file.write_batch(pa.RecordBatch.from_struct_array(rows))
    except pa.ArrowException as error:
        raise ValueError(
            f"The rows of {source.name} do not fit the columns of a Parquet file: {str(error).rstrip('.')}. Use a "
            f".jsonl file. To reuse the scores, first rename {parts.folder} to the name of that file with `.parts` "
            "appended."
        ) from error


def _as_array(source: RowSource, parts: ScoredParts, part: int, schema: Any = None) -> Any:
    rows = list(_complete(_rows_of(source, parts, part)))
    return pa.array(rows, type=schema if schema is not None or rows else pa.struct([]))
