"""Files written whole: nothing half, nothing through a link, and only one run at a time on scored parts."""

import os
import stat
from pathlib import Path

import pytest

from trl_dpo_ext.reward_model.files.parts import ScoredParts, ScoredRow
from trl_dpo_ext.whole_file import whole_file, write_text


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with whole_file(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_an_error_leaves_the_old_one(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a.txt") as unfinished:
        unfinished.write_text("half")
        1 / 0  # noqa: B018
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("target", ["precious.txt", "nowhere/at/all"])
def test_a_link_is_replaced_and_not_followed(tmp_path, target):
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "a.txt").symlink_to(tmp_path / target)
    write_text(tmp_path / "a.txt", "new \ud83d")
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert not (tmp_path / "a.txt").is_symlink() and (tmp_path / "a.txt").read_text() == "new ?"


class TestParts:
    def test_a_second_run_is_refused_by_name(self, tmp_path):
        parts = ScoredParts(tmp_path / "out.jsonl")
        with parts.locked():
            parts.begin({"beta": 0.1}, discard=False)
            for check in (ScoredParts(tmp_path / "out.jsonl").check_free, ScoredParts(tmp_path / "out.jsonl")._lock):
                with pytest.raises(ValueError, match=r"Another run writes .*out\.jsonl "):
                    check()
        ScoredParts(tmp_path / "out.jsonl").check_free()  # the first is over
        with ScoredParts(tmp_path / "out.jsonl").locked():
            parts.begin({"beta": 0.1}, discard=False)
            parts.remove()
        assert os.listdir(tmp_path) == []

    def test_what_a_killed_run_left(self, tmp_path):
        (tmp_path / "out.jsonl.parts").mkdir()
        for name in ("lock", ".0123.tmp"):
            (tmp_path / "out.jsonl.parts" / name).touch()
        with ScoredParts(tmp_path / "out.jsonl").locked():
            ScoredParts(tmp_path / "out.jsonl").begin({}, discard=False)

    def test_planted_files(self, tmp_path):
        precious = tmp_path / "precious"
        precious.write_text("mine")
        parts = ScoredParts(tmp_path / "out.jsonl")
        with parts.locked():
            parts.begin({}, discard=False)
            for name in ("part-000000.jsonl", "errors.tmp", "joined.tmp"):
                (parts.folder / name).symlink_to(precious)
            assert not parts.has(0) and parts.read(0, range(1)) is None
            parts.write(0, [ScoredRow(0, [1.0])])
            assert parts.read(0, range(1)) == [ScoredRow(0, [1.0])]
        assert precious.read_text() == "mine"

    @pytest.mark.parametrize("name", ["out.jsonl.parts", "out.jsonl.parts/lock"])
    def test_links_in_the_way(self, tmp_path, name):
        (tmp_path / "elsewhere").mkdir()
        if "/" in name:
            (tmp_path / "out.jsonl.parts").mkdir()
            (tmp_path / "out.jsonl.parts/run.json").write_text("{}")
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
        with (
            pytest.raises((ValueError, OSError), match=r"out\.jsonl\.parts"),
            ScoredParts(tmp_path / "out.jsonl").locked(),
        ):
            pass
        assert os.listdir(tmp_path / "elsewhere") == []

    @pytest.mark.parametrize(
        "damage", ["", "[]", "null", "{", "[" * 100_000, '{"rows": 1', '{"number": 0, "x": 1}', '{"number": 1}', "é"]
    )
    def test_a_damaged_part_is_scored_again(self, tmp_path, damage):
        parts = ScoredParts(tmp_path / "out.jsonl")
        with parts.locked():
            parts.begin({"beta": 0.1}, discard=False)
            (parts.folder / "part-000000.jsonl").write_text(damage, encoding="latin-1")
            assert parts.read(0, range(1)) is None
            (parts.folder / "run.json").write_text(damage, encoding="latin-1")
            with pytest.raises(ValueError, match=r"run\.json is damaged|with other settings: `beta`"):
                parts.begin({"beta": 0.1}, discard=False)
            parts.begin({"beta": 0.1}, discard=True)
            assert not Path(parts.folder, "part-000000.jsonl").exists()
