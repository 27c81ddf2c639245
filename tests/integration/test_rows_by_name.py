"""Rows are named alike on every command: what can be read is the same, and the same mistake is the same message."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from tiny import preference_rows

from trl_dpo_ext.cli import main
from trl_dpo_ext.data.sources import load_splits


# The options for rows and split of each command
OPTIONS = {"dpo": ("dataset_name", "dataset_train_split"), "doctor": ("ROWS", "split"), "score": ("ROWS", "split")}
CONFIGURATIONS = """\
---
configs:
- config_name: clean
  data_files: clean.jsonl
- config_name: noisy
  data_files: noisy.jsonl
---
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the same rows in every form, and with what cannot be read."""
    monkeypatch.chdir(tmp_path)
    rows = preference_rows(8)
    rows.to_json("rows.jsonl")
    Path("array.json").write_text(json.dumps(list(rows)))
    rows.to_parquet("rows.parquet")
    rows.to_csv("rows.csv")
    with pa.ipc.new_stream("rows.arrow", rows.data.table.schema) as file:
        file.write_table(rows.data.table)
    rows.save_to_disk("saved")
    DatasetDict(train=rows, test=rows.select([0])).save_to_disk("splits")
    rows.to_json("files/train.jsonl")
    for name in ("clean", "noisy"):
        rows.to_json(f"several/{name}.jsonl")
    Path("several/README.md").write_text(CONFIGURATIONS)
    Path("nothing").mkdir()
    Path("garbage.parquet").write_text("?")
    Path("empty.jsonl").touch()
    Path("notes.txt").touch()
    return tmp_path


def words_of(command: str, rows: str, *more: str) -> list[str]:
    if command == "doctor":
        return ["doctor", rows, "--tokenizer", "model", *more]
    if command == "score":
        return ["score", "model", rows, "--output", "out.jsonl", *more]
    options = ["--model_name_or_path", "model", "--output_dir", "out", "--use_cpu", "--global_batch_size", "8"]
    return ["dpo", "--dataset_name", rows, *options, *more]


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a command on rows that it refuses, and returns its message."""

    def run(command: str, rows: str, *more: str) -> str:
        assert main(words_of(command, rows, *more)) == 2
        said = capsys.readouterr()
        assert said.out == "" and "Traceback" not in said.err
        _, _, message = said.err.partition(f"trl-dpo-ext {command}: ")
        return message

    return run


every_command = pytest.mark.parametrize("command", OPTIONS)


@every_command
@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("rwos.jsonl", "does not exist. Did you mean rows.jsonl?"),
        ("file/train.jsonl", "does not exist."),
        ("files/trian.jsonl", "does not exist. Did you mean files/train.jsonl?"),
        ("notes.txt", "is not a .jsonl, .json, .parquet, .csv or .arrow file."),
        ("garbage.parquet", "cannot be read: Parquet file size is 1 bytes, smaller than the minimum file footer"),
        ("nothing", "cannot be read: The directory at"),
        (
            "saevd",
            "is no file and no folder, and as the name of a dataset: Couldn't reach 'saevd' on the Hub "
            "(OfflineModeIsEnabled). Did you mean saved?",
        ),
    ],
)
def test_what_cannot_be_read(refused, command, rows, problem):
    assert refused(command, rows).startswith(f"`{OPTIONS[command][0]}`: {rows} {problem}")


@every_command
def test_a_misspelt_folder_by_its_whole_path(refused, folder, command):
    message = f"`{OPTIONS[command][0]}`: {folder}/splts does not exist. Did you mean {folder}/splits?\n"
    assert refused(command, f"{folder}/splts") == message


@every_command
@pytest.mark.parametrize(
    ("rows", "there"), [("rows.jsonl", "train"), ("saved", "train"), ("files", "train"), ("splits", "train, test")]
)
def test_no_such_split(refused, command, rows, there):
    option = OPTIONS[command][1]
    assert refused(command, rows, f"--{option}", "eval") == f"`{option}`: {rows} has no split `eval`, only {there}.\n"


@every_command
@pytest.mark.parametrize("rows", ["rows.jsonl", "rows.csv", "saved", "splits"])
def test_rows_without_configurations(refused, command, rows):
    message = f"`dataset_config='clean'` has no effect on {rows}. Leave it out.\n"
    assert refused(command, rows, "--dataset_config", "clean") == message


@every_command
@pytest.mark.parametrize("given", ["claen", None])
def test_no_such_configuration(refused, command, given):
    more = [] if given is None else ["--dataset_config", given]
    problem = f"several cannot be read: `dataset_config={given!r}` is none of its clean, noisy."
    assert refused(command, "several", *more) == f"`{OPTIONS[command][0]}`: {problem}\n"


def test_the_split_that_is_held_out(refused):
    message = "`test_split`: rows.jsonl has no split `test`, only train.\n"
    assert refused("doctor", "rows.jsonl", "--test_split", "test") == message


FORMS = ["rows.jsonl", "array.json", "rows.parquet", "rows.csv", "rows.arrow", "saved", "splits", "files"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("rows", FORMS)
def test_every_form_holds_the_same_rows(folder, rows, streaming):
    splits = load_splits(rows, option="rows", streaming=streaming)
    assert list(splits) == (["train", "test"] if rows == "splits" else ["train"])
    assert isinstance(splits["train"], IterableDataset if streaming else Dataset)
    assert list(splits["train"]) == list(preference_rows(8))


def test_a_configuration(folder):
    splits = load_splits("several", option="rows", dataset_config="noisy")
    assert list(splits["train"]) == list(preference_rows(8))


def test_several_files_by_one_pattern(folder):
    assert len(load_splits("several/*.jsonl", option="rows")["train"]) == 16


def test_an_empty_file(folder):
    with pytest.raises(ValueError, match=r"^`rows`: empty\.jsonl has no rows\.$"):
        load_splits("empty.jsonl", option="rows")


@pytest.mark.parametrize("rows", ["saved", "rows.parquet"])
def test_training_takes_them(folder, llama_folder, capsys, rows):
    assert main([*words_of("dpo", rows), "--model_name_or_path", llama_folder, "--dry_run"]) == 0
    assert "The train dataset: 8 rows of preference pairs examined" in capsys.readouterr().out


def test_columns_of_neither_kind_are_not_renamed_to_one(folder, llama_folder, capsys):
    Path("answers.jsonl").write_text('{"question": "Q", "response_a": "a", "response_b": "b"}\n')
    assert main(["doctor", "answers.jsonl", "--tokenizer", llama_folder]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "Training stops: The train dataset has neither pairs nor rankings; found question, response_a, response_b. "
        "Fix: Pairs need `chosen`, `rejected` and, unless both start with it, `prompt`. Rankings need `completions`, "
        "best first or with `ranks` or `scores`, and `prompt` likewise. Rename your columns with "
        "`dataset.rename_column`. 1 error"
    ) in said
