"""`trl-dpo-ext prompts`: files of every kind, the hub's names, and the files that `sample` reads."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from trl_dpo_ext.cli import main
from trl_dpo_ext.data import sources


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def dialogue(question: str, answer: str = " Yes.") -> dict[str, str]:
    prompt = f"\n\nHuman: {question}\n\nAssistant:"
    return {"chosen": prompt + answer, "rejected": prompt + " No."}


ROWS = {
    "hh": [
        dialogue("Film 1?"),
        dialogue("Film 2? é\u2028", " Nö."),
        dialogue("Film 3?"),
        dialogue("Film 1?", " Twice."),
    ],
    "tldr": [
        {"prompt": f"SUBREDDIT: r/films\n\nTITLE: {i}\n\nPOST: Film {i}.\n\nTL;DR:", "completion": f" {i}."}
        for i in range(3)
    ],
    "cnn_dailymail": [{"article": f"Film {i}.", "highlights": f"{i} .", "id": f"f{i}"} for i in range(3)],
}
HH = [  # in the order of the hashes of the seed 0 and the prompts
    {"prompt_id": 0, "prompt": "\n\nHuman: Film 1?\n\nAssistant:", "completion": " Yes."},
    {"prompt_id": 1, "prompt": "\n\nHuman: Film 3?\n\nAssistant:", "completion": " Yes."},
    {"prompt_id": 2, "prompt": "\n\nHuman: Film 2? é\u2028\n\nAssistant:", "completion": " Nö."},
]


def write_rows(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: str = "out.jsonl") -> list[dict[str, Any]]:
    # Lines end at "\n" only, not at U+2028
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1]]


def prompts(task: str, *words: str, output: str = "out.jsonl") -> int:
    return main(["prompts", task, "--output", output, *words])


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "splits", "folder"])
def test_files_of_all_kinds(kind, capsys):
    rows, words = Dataset.from_list(ROWS["hh"]), []
    name = f"rows.{kind}" if kind in ("jsonl", "parquet") else kind
    if kind == "jsonl":
        write_rows(ROWS["hh"])
    elif kind == "parquet":
        rows.to_parquet(name)
    elif kind == "saved":  # it has no splits, which is `train`
        rows.save_to_disk(name)
        words = ["--split", "train"]
    elif kind == "splits":
        DatasetDict(train=rows.select([0]), test=rows).save_to_disk(name)
    else:
        rows.to_json("folder/test.jsonl")
        rows.select([0]).to_json("folder/train.jsonl")
    assert prompts("hh", "--dataset", name, *words) == 0
    assert read() == HH
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-2:] == [
        "Wrote out.jsonl: 3 of 3 prompts.",
        "Left out 1 of 4 rows with the prompt of an earlier row.",
    ]


@pytest.mark.parametrize(
    ("task", "name", "config"),
    [
        ("hh", "Anthropic/hh-rlhf", None),
        ("tldr", "trl-lib/tldr", None),
        ("cnn_dailymail", "abisee/cnn_dailymail", "3.0.0"),
    ],
)
def test_datasets_of_the_hub(task, name, config, monkeypatch):
    asked = []

    def load_dataset(*words: Any, **options: Any) -> DatasetDict:
        asked.append(words)
        return DatasetDict(train=Dataset.from_list([{"text": "?"}]), test=Dataset.from_list(ROWS[task]))

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    assert prompts(task) == 0
    assert asked == [(name, config)]
    write_rows(ROWS[task])
    assert prompts(task, "--dataset", "rows.jsonl", output="of_file.jsonl") == 0
    assert read() == read("of_file.jsonl") and len(read()) == 3


def test_same_bytes_whatever_the_order_of_the_rows():
    write_rows(ROWS["cnn_dailymail"])
    write_rows(ROWS["cnn_dailymail"][::-1], "reversed.jsonl")
    for seed in ("0", "1", "2", "3"):
        words = ["--num", "2", "--seed", seed]
        assert prompts("cnn_dailymail", *words, "--dataset", "rows.jsonl", output=f"{seed}.jsonl") == 0
        assert prompts("cnn_dailymail", *words, "--dataset", "reversed.jsonl") == 0
        assert Path("out.jsonl").read_bytes() == Path(f"{seed}.jsonl").read_bytes()
    drawn = [[row["source_id"] for row in read(f"{seed}.jsonl")] for seed in range(4)]
    assert drawn == [["f1", "f2"], ["f0", "f2"], ["f1", "f0"], ["f0", "f2"]]


def test_long_prompts_are_left_out(capsys):
    write_rows([*ROWS["hh"], dialogue("Film 4?" + "?" * 100)])
    assert prompts("hh", "--dataset", "rows.jsonl", "--max_prompt_chars", "100") == 0
    assert read() == HH
    assert "Left out 1 of 5 rows with a prompt of more than 100 characters.\n" in capsys.readouterr().err


@pytest.mark.usefixtures("float64")
def test_the_file_is_prompts_and_baseline(llama_folder):
    write_rows(ROWS["hh"])
    assert prompts("hh", "--dataset", "rows.jsonl", output="prompts.jsonl") == 0
    words = ["--num_samples", "2", "--max_new_tokens", "4", "--temperature", "0.5"]
    assert main(["sample", llama_folder, "prompts.jsonl", "--output", "samples.jsonl", *words]) == 0
    baseline = {row["prompt_id"]: row for row in read("prompts.jsonl")}
    samples = read("samples.jsonl")
    assert [row["prompt_id"] for row in samples] == [0, 0, 1, 1, 2, 2]
    assert all(row["prompt"] == baseline[row["prompt_id"]]["prompt"] for row in samples)


def test_what_is_wrong_is_one_line_and_no_file(capsys):
    write_rows([ROWS["hh"][0], {"prompt": "A?"}])
    Path("out.jsonl").write_text("before")
    for words, says in {
        (
            "hh",
            "--dataset",
            "rows.jsonl",
        ): "The columns of row 1 (line 2) of rows.jsonl are prompt. Expected chosen, as",
        (
            "tldr",
            "--dataset",
            "rows.jsonl",
        ): "The columns of row 0 (line 1) of rows.jsonl are chosen, rejected. Expected",
        ("hh", "--dataset", "none.jsonl"): "`--dataset`: none.jsonl does not exist. Did you mean out.jsonl?",
        ("hh", "--dataset", "rows.jsonl", "--split", "test"): "`split`: rows.jsonl has no split `test`, only train.",
        (
            "hh",
            "--dataset",
            "rows.jsonl",
            "--dataset_config",
            "a",
        ): "`dataset_config='a'` has no effect on rows.jsonl.",
    }.items():
        assert prompts(*words) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"trl-dpo-ext prompts: {says}") and err.count("\n") == 1
    assert Path("out.jsonl").read_text() == "before"
    assert sorted(path.name for path in Path().iterdir()) == ["out.jsonl", "rows.jsonl"]
