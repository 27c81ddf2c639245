"""What `trl-dpo-ext score` reads: parts apart, and one identity of a data set."""

import pytest
from tiny import preference_rows

from trl_dpo_ext.reward_model.files.row_sources import open_rows


pytestmark = pytest.mark.usefixtures("float64")


# Reading


def test_parts_are_read_apart(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": 2}\n[]\n\n{"a": 4}')
    source = open_rows(str(path), rows_per_part=2)
    assert (source.num_rows, source.num_parts, source.size_of(1)) == (4, 2, 2)
    assert [(record.number, record.row) for record in source.read(1)] == [(2, {}), (3, {"a": 4})]
    assert [(record.number, record.row) for record in source.read(0)] == [(0, {"a": 1}), (1, {"a": 2})]
    assert [record.line for part in (0, 1) for record in source.read(part)] == [1, 4, 5, 7]
    assert source.identity == open_rows(str(path), rows_per_part=3).identity
    path.write_bytes(path.read_bytes() + b"\n")
    assert source.identity != open_rows(str(path), rows_per_part=2).identity


def test_rows_of_a_data_set_have_one_identity(tmp_path):
    rows = preference_rows(5)
    rows.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "again").mkdir()
    rows.to_parquet(tmp_path / "again/rows.parquet")
    preference_rows(5, start=1).to_parquet(tmp_path / "other.parquet")
    first, again, other = (
        open_rows(str(tmp_path / name), rows_per_part=2)
        for name in ("rows.parquet", "again/rows.parquet", "other.parquet")
    )
    assert first.identity == again.identity != other.identity
    assert [record.row for part in range(3) for record in first.read(part)] == list(rows)
