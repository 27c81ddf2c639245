"""Files as users have them: every one is read right, or refused in one message that names the line."""

import bz2
import gzip
import json
import lzma
import os
import random
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, disable_progress_bars, enable_progress_bars
from tiny import preference_rows

from trl_dpo_ext.data.json_files import check_json, json_problem, open_bytes, parse_object
from trl_dpo_ext.data.sources import load_splits
from trl_dpo_ext.reward_model.files.row_sources import open_rows


ROW = b'{"prompt": "Q ", "chosen": "a", "rejected": "b"}\n'
GOOD = {"prompt": "Q ", "chosen": "a", "rejected": "b"}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    disable_progress_bars()
    yield
    enable_progress_bars()


def loaded(name: str, **options) -> list:
    return list(load_splits(name, option="rows", **options)["train"])


# Of these pyarrow ends the process, or reads a row of nothing, or names no line
WRONG_LINES = {
    b"null\n" + ROW: "line 1 is a JSON value of type NoneType",
    b"\xef\xbb\xbfnull\n" + ROW: "line 1 is a JSON value of type NoneType",
    b"\n  null \n" + ROW: "line 2 is a JSON value of type NoneType",
    b'null {"prompt": "Q "}\n': "line 1 is not JSON: Extra data at column 6",
    ROW + b"\nnull\n" + ROW: "line 3 is a JSON value of type NoneType",
    ROW + b"[1]\n": "line 2 is a JSON value of type list",
    b"7\n" + ROW: "line 1 is a JSON value of type int",
    b'"text"\n' + ROW: "line 1 is a JSON value of type str",
    b"[null, " + ROW.strip() + b"]": "row 0 is a JSON value of type NoneType",
    b"[" + ROW.strip() + b", 3]": "row 1 is a JSON value of type int",
    b"[" + ROW.strip() + b",]": "begins like a JSON array, and is not one: ",
    ROW + b",\n": "line 2 is not JSON: Expecting value at column 1",
    ROW + b"\0\n": "line 2 is not JSON: Expecting value at column 1",
    ROW + b'{"prompt": "caf\xe9"}\n': "line 2 is not UTF-8: byte 0xe9 at byte 16",
    ROW.decode().encode("utf-16"): "line 1 is not UTF-8: byte 0xff at byte 1",
    ROW + ROW.replace(b"}", b",}"): "line 2 is not JSON: ",
    ROW + ROW[:20]: "line 2 is not JSON: Unterminated string",
    ROW + ROW.replace(b'"chosen"', b'"prompt"'): "line 2 is not JSON that can be read: it has `prompt` twice",
    ROW + b'{"prompt": ' + b"[" * 100_000 + b"\n": "line 2 is not JSON that can be read: ",
    # From Python 3.13 on it is the comma that is named
    b"{\n" + ROW[1:-2] + b",\n}\n": f"line {2 if sys.version_info >= (3, 13) else 3} is not JSON: ",
    ROW.strip() + ROW.strip() + b"null": "line 1 holds several objects. End each by a line feed.",
    ROW + ROW.strip() + b" \t" + ROW: "line 2 holds several objects",
    ROW.replace(b"\n", b"\r") * 3: "line 1 holds several objects",
    ROW + ROW.replace(b'"Q "', b'{"x": 1}'): "`prompt` is text in line 1 and an object in line 2",
    b"\x1f\x8b\x08" + ROW: "is compressed, and damaged: ",
    b"": "has no rows.",
    b"[]": "has no rows.",
}


@pytest.mark.parametrize("content", WRONG_LINES, ids=range(len(WRONG_LINES)))
@pytest.mark.parametrize("streaming", [False, True])
def test_a_wrong_line_is_named(content, streaming):
    Path("rows.jsonl").write_bytes(content)
    if b'{"x": 1}' in content:
        assert json_problem(Path("rows.jsonl")) == WRONG_LINES[content]
        return
    with pytest.raises(ValueError) as error:
        loaded("rows.jsonl", streaming=streaming)
    assert str(error.value).startswith("`rows`: rows.jsonl ") and WRONG_LINES[content] in str(error.value)


def test_a_file_of_a_folder_is_named():
    os.makedirs("folder/train")
    Path("folder/train/0.jsonl").write_bytes(ROW)
    Path("folder/train/1.jsonl").write_bytes(ROW + b"null\n")
    for name, file in (("folder", "folder/train/1.jsonl"), ("folder/*/*.jsonl", "folder/train/1.jsonl")):
        with pytest.raises(ValueError, match=rf"^`rows`: .* cannot be read: {file}: line 2 is a JSON value"):
            loaded(name)


@pytest.mark.parametrize(
    "content",
    [
        ROW,
        b"\xef\xbb\xbf" + ROW,
        ROW.replace(b"\n", b"\r\n"),
        b"\n \n" + ROW + b"\n",
        ROW.strip(),
        json.dumps([GOOD], indent=1).encode(),
        json.dumps(GOOD, indent=1).encode(),
    ],
)
def test_good_rows(content):
    Path("rows.json").write_bytes(content)
    check_json(Path("rows.json"))
    assert loaded("rows.json") == loaded("rows.json", streaming=True) == [GOOD]


@pytest.mark.parametrize(
    ("module", "name"), [(gzip, "gz.jsonl"), (gzip, "rows.jsonl.gz"), (lzma, "rows.json.xz"), (bz2, "rows.jsonl.bz2")]
)
def test_compressed(module, name):
    rows = list(preference_rows(5))
    with module.open(name, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert loaded(name) == rows
    source = open_rows(name, rows_per_part=2)
    assert [record.row for part in range(3) for record in source.read(part)] == rows
    with open_bytes(Path(name)) as file:
        assert len(file.readlines()) == 5


def test_other_compressed_names():
    preference_rows(3).to_csv("rows.csv")
    with gzip.open("rows.csv.gz", "wb") as file:
        file.write(Path("rows.csv").read_bytes())
    assert loaded("rows.csv.gz") == list(preference_rows(3))
    os.rename("rows.csv.gz", "rows.csv.xz")
    with pytest.raises(ValueError, match=r"rows\.csv\.xz is not compressed as its name says\. Rename it\.$"):
        loaded("rows.csv.xz")
    with gzip.open("rows.parquet.gz", "wb") as file:
        file.write(b"PAR1")
    with pytest.raises(ValueError, match=r"rows\.parquet\.gz is not a \.jsonl, \.json"):
        loaded("rows.parquet.gz")


@pytest.mark.parametrize(
    "name", ["rows[1].jsonl", "a*b.jsonl", "what?.jsonl", "[x]/rows.jsonl", "rows[1].parquet", "s[1]"]
)
def test_names_that_look_like_patterns(name):
    Path(name).parent.mkdir(exist_ok=True)
    rows = preference_rows(3)
    if name == "s[1]":
        rows.save_to_disk(name)
    else:
        getattr(rows, "to_parquet" if name.endswith("parquet") else "to_json")(name)
    assert loaded(name) == list(rows)
    assert loaded(str(Path(name).resolve()), streaming=True) == list(rows)


def test_names_that_cannot_be_read():
    Path("a::b.jsonl").write_bytes(ROW)
    Path("rows.jsonl").symlink_to("gone.jsonl")
    Path("loop").symlink_to("loop")
    for read in (loaded, lambda name: open_rows(name, rows_per_part=2)):
        with pytest.raises(ValueError, match=r"a::b\.jsonl has `::` in its name, .* Rename it\.$"):
            read("a::b.jsonl")
        with pytest.raises(ValueError, match=r": rows\.jsonl is a link to gone\.jsonl, which does not exist\.$"):
            read("rows.jsonl")
    Path("a::b.jsonl").unlink()
    with pytest.raises(ValueError, match=r"^`rows`: row\.jsonl does not exist\.$"):  # no link to nothing is meant
        loaded("row.jsonl")


@pytest.mark.parametrize("streaming", [False, True])
def test_text_stays_text(streaming):
    texts = ["2020-01-01", "2020-01-01T10:00:00", "12:30"]
    rows = [{"prompt": text, "chosen": [{"role": "user", "content": text}], "rejected": "b"} for text in texts[:2]]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert loaded("rows.jsonl", streaming=streaming) == rows
    Path("rows.jsonl").write_text("".join(json.dumps(row | {"n": 1}) + "\n" for row in rows))  # no stale cache
    assert loaded("rows.jsonl", streaming=streaming) == [row | {"n": 1} for row in rows]
    Path("rows.csv").write_text("prompt,chosen,rejected,score\n42,None,NA,1\n1e3,true,2020-01-01,2\n")
    assert loaded("rows.csv", streaming=streaming) == [
        {"prompt": "42", "chosen": "None", "rejected": "NA", "score": 1},
        {"prompt": "1e3", "chosen": "true", "rejected": "2020-01-01", "score": 2},
    ]


STATES = [
    b"[]", b"null", b"{", b"{}", b'{"_data_files": null}', b'{"_data_files": [1]}', b'{"_data_files": [{}]}',
    b'{"_data_files": [{"filename": "../other/data-00000-of-00001.arrow"}]}',
    b'{"_data_files": [{"filename": "/etc/passwd"}]}', b"\xff", b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("file", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("content", STATES)
def test_a_broken_saved_data_set(content, file):
    preference_rows(3).save_to_disk("other")
    DatasetDict(train=preference_rows(3)).save_to_disk("saved")
    if file == "dataset_info.json" and content.startswith(b"{"):
        content = b"[1]"
    Path("saved/train", file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^`rows`: saved cannot be read: saved/train/{file} "):
        loaded("saved")


@pytest.mark.parametrize("content", [b"[]", b'{"splits": "train"}', b'{"splits": ["../other"]}', b'{"splits": [1]}'])
def test_a_broken_list_of_splits(content):
    DatasetDict(train=preference_rows(3)).save_to_disk("saved")
    Path("saved/dataset_dict.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^`rows`: saved cannot be read: saved/dataset_dict\.json "):
        loaded("saved")


def test_damaged_arrow_data():
    preference_rows(50).save_to_disk("saved")
    path = next(Path("saved").glob("*.arrow"))
    whole = path.read_bytes()
    chance = random.Random(0)
    for _ in range(30):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged if chance.random() < 0.7 else damaged[: chance.randrange(len(damaged))])
        try:
            assert len(loaded("saved")) <= 50
        except ValueError as error:
            assert str(error).startswith("`rows`: saved cannot be read: ")


def test_fuzzed_lines():
    """What a line can be turned into: the same verdict from the line, the file and the scorer, and no other error."""
    chance = random.Random(0)
    for _ in range(200):
        line = bytearray(ROW.strip())
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(line) + 1)
            match chance.randrange(4):
                case 0:
                    line[at : at + chance.randint(1, 9)] = b""
                case 1:
                    line[at:at] = chance.choice(
                        [b"null", b"\0", b"\xe9", b"\xef\xbb\xbf", b"{", b"]", b'"', b"1e999", b"\\u"]
                    )
                case 2 if at < len(line):
                    line[at] ^= 1 << chance.randrange(8)
                case _:
                    del line[at:]
        line = bytes(line).replace(b"\n", b" ").replace(b"\r", b" ").strip()
        Path("rows.jsonl").write_bytes(ROW + line + b"\n")
        try:
            parse_object(line)
            problem = None
        except ValueError as error:
            problem = str(error)
        records = list(open_rows("rows.jsonl", rows_per_part=5).read(0))
        assert records[0].row == GOOD and records[0].line == 1
        if line.strip():
            assert (records[1].problem, records[1].where) == (problem, "row 1 (line 2)")
        if line.strip() and problem:
            assert json_problem(Path("rows.jsonl")) == f"line 2 is {problem}"
        try:
            check_json(Path("rows.jsonl"))
        except ValueError as error:
            assert str(error).startswith("line 2 is ")
        else:
            assert problem is None or line.startswith(b"{") or not line.strip()


@pytest.mark.parametrize("streaming", [False, True])
def test_dates_of_several_files_stay_text(streaming):
    dates = GOOD | {"chosen": "2024-01-02", "rejected": "2024-01-03T04:05:06"}
    Path("folder").mkdir()
    for name, count in {"train": 2, "test": 1}.items():
        Path("folder", f"{name}.jsonl").write_text(f"{json.dumps(dates)}\n" * count)
    splits = load_splits("folder", option="rows", streaming=streaming)
    assert {split: list(rows) for split, rows in splits.items()} == {"train": [dates] * 2, "test": [dates]}
    assert loaded("folder/t*.jsonl", streaming=streaming) == [dates] * 3


def test_text_that_looks_like_several_objects():
    row = GOOD | {"chosen": "if (a) {b} {c}", "rejected": "}{"}
    Path("rows.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    assert loaded("rows.jsonl") == [row] * 2


def test_arrays_and_lines_name_rows_alike():
    Path("rows.json").write_text(json.dumps([GOOD, 3]))
    records = list(open_rows("rows.json", rows_per_part=5).read(0))
    assert [(record.where, record.problem is None) for record in records] == [("row 0", True), ("row 1", False)]
    Dataset.from_list([GOOD]).to_parquet("rows.parquet")
    assert [record.where for record in open_rows("rows.parquet", rows_per_part=5).read(0)] == ["row 0"]
