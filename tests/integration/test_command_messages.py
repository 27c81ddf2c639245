"""What can be wrong with a training on the command line is one message, with the way out."""

import json
from pathlib import Path

import pytest
from tiny import preference_rows, save_tiny, tiny_llama, tiny_tokenizer

from trl_dpo_ext.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    save_tiny(tiny_llama(), tiny_tokenizer(), folder / "model")
    preference_rows(8).to_json(folder / "rows.jsonl")
    (folder / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": null}\n')
    (folder / "columns.jsonl").write_text(json.dumps({"prompt": "a", "chosen": " b", "rejcted": " c"}) + "\n")
    (folder / "broken.jsonl").write_text('{"prompt": "a", "chosen\n')
    return folder


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (
            {"dataset_name": "rws.jsonl"},
            ["`dataset_name`: /", "/rws.jsonl does not exist. Did you mean /", "/rows.jsonl?"],
        ),
        (
            {"dataset_name": "broken.jsonl"},
            ["`dataset_name`: /", "/broken.jsonl cannot be read: JSON parse error: Invalid encoding in string."],
        ),
        ({"dataset_name": "bad.jsonl"}, ["`rejected` in row 0 of the train dataset is None"]),
        ({"dataset_name": "columns.jsonl"}, ["no column `rejected`", "Is it `rejcted`?"]),
        ({"model_name_or_path": "modle"}, ["There is no folder", "Did you mean", "/model?"]),
        ({"log_samples": "2"}, ["`log_samples=2` has no effect with `eval_strategy='no'`"]),
        ({"beta": "-1"}, ["`beta=-1.0` must be a finite number above 0"]),
        ({"bata": "1"}, ["there is no option `bata`. Did you mean `beta`?"]),
        (
            {"dataset_train_split": "trian"},
            ["`dataset_train_split`: /", "/rows.jsonl has no split `trian`, only train."],
        ),
    ],
    ids=lambda value: next(iter(value.items()))[1] if isinstance(value, dict) else "",
)
def test_one_message(options, messages, folder, capsys):
    given = {"model_name_or_path": "model", "dataset_name": "rows.jsonl", "output_dir": "out"} | options
    paths = ("model_name_or_path", "dataset_name", "output_dir")
    words = [
        word
        for name, value in given.items()
        for word in (f"--{name}", str(folder / value) if name in paths else value)
    ]
    assert main(["dpo", *words, "--use_cpu", "true", "--global_batch_size", "8"]) == 2
    said = capsys.readouterr().err
    assert said.count("trl-dpo-ext dpo: ") == 1
    for message in messages:
        assert message in said
    assert "Traceback" not in said
