"""`trl-dpo-ext score`: the reward model's values in files, bad lines by number, and the same bytes however it ran."""

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from closeness import same
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from peft import get_peft_model
from tiny import lora_config, preference_rows, ranking_rows, save_tiny, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM

from trl_dpo_ext import ImplicitRewardModel
from trl_dpo_ext.cli import main
from trl_dpo_ext.reward_model.files.parts import ScoredParts


pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, llama_folder: str) -> list[str]:
    """The words that name a policy, its reference and beta."""
    policy = save_tiny(tiny_llama(1), tiny_tokenizer(), tmp_path_factory.mktemp("policy") / "policy")
    return [policy, "--reference", llama_folder, "--beta", "0.1"]


@pytest.fixture
def reward_model(model: list[str]) -> ImplicitRewardModel:
    return ImplicitRewardModel.from_pretrained(model[0], reference=model[2], beta=0.1)


@pytest.fixture
def score(model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command in `tmp_path`, and returns its exit status."""
    monkeypatch.chdir(tmp_path)

    def run(rows: str, output: str, *words: str) -> int:
        return main(["score", *model, rows, "--output", output, *words])

    return run


def write_lines(path: str, rows: Any) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# Values


@pytest.mark.parametrize("kind", ["plain", "chat", "implicit", "implicit_chat", "tools", "template"])
def test_pairs(score, reward_model, kind):
    rows = preference_rows(7, kind)
    write_lines("rows.jsonl", rows)
    rows.to_parquet("rows.parquet")
    rows.save_to_disk("rows")
    expected = list(reward_model.score_dataset(rows))
    assert max(abs(row["score_chosen"]) for row in expected) > 0.1
    for source in ("rows.jsonl", "rows.parquet", "rows"):
        assert score(source, "out.jsonl", "--rows_per_part", "3", "--overwrite") == 0
        found = read_lines("out.jsonl")
        assert [list(row) for row in found] == [[*rows.column_names, "score_chosen", "score_rejected"]] * 7
        for row, of_row, given in zip(found, expected, rows, strict=True):
            assert row["score_chosen"] == same(of_row["score_chosen"])
            assert row["score_rejected"] == same(of_row["score_rejected"])
            assert {name: row[name] for name in given} == given
        assert score(source, "out.parquet", "--rows_per_part", "3", "--overwrite") == 0
        assert pq.read_table("out.parquet").to_pylist() == found


@pytest.mark.parametrize("source", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_rankings_and_single_completions(score, reward_model, source):
    rankings = ranking_rows(5, [3], [[1, 0, 2]])
    singles = [{"prompt": row["prompt"], "completion": row["completions"][0]} for row in rankings]
    for rows, name in ((rankings.to_list(), "scores"), (singles, "score")):
        if source == "rows.parquet":
            Dataset.from_list(rows).to_parquet(source)
        elif source == "rows.json":
            Path(source).write_text(json.dumps(rows, indent=1))
        else:
            write_lines(source, rows)
        expected = reward_model.score_dataset(Dataset.from_list(rows))[name][:]
        for output in ("out.jsonl", "out.parquet"):
            assert score(source, output, "--rows_per_part", "2", "--overwrite") == 0
        found = read_lines("out.jsonl")
        assert pq.read_table("out.parquet").to_pylist() == found
        for row, of_row, given in zip(found, expected, rows, strict=True):
            assert row == given | {name: same(of_row)}


def test_options_of_the_model(score, model):
    write_lines("rows.jsonl", preference_rows(5, "implicit"))
    options = {"tokenization": "joint", "max_length": 60, "max_tokens_per_batch": 100}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    assert score("rows.jsonl", "out.jsonl", "--beta", "0.3", *words) == 0
    model = ImplicitRewardModel.from_pretrained(model[0], reference=model[2], beta=0.3, **options)
    expected = model.score_dataset(preference_rows(5, "implicit"))
    assert [row["score_chosen"] for row in read_lines("out.jsonl")] == same(expected["score_chosen"][:])


def test_cut_rows_are_counted_once(score, capsys, caplog):
    write_lines("rows.jsonl", [{"prompt": "x" * n, "completion": "y"} for n in (3, 90, 4, 80, 70)])
    for mode in ("separate", "joint"):
        assert score("rows.jsonl", f"{mode}.jsonl", "--max_length", "20", "--tokenization", mode) == 0
        assert "3 rows exceed `max_length=20` and are truncated as in training." in capsys.readouterr().err
    assert "exceed" not in caplog.text


def test_columns_of_lines_become_those_of_a_parquet_file(score):
    rows = [
        {"prompt": "Q ", "completion": "a", "note": 1, "tags": {"x": 1}},
        {"prompt": "Q ", "completion": "b", "note": 1.5, "tags": {"y": ["é"]}},
        {"prompt": "Q ", "completion": "c"},
    ]
    write_lines("rows.jsonl", rows)
    assert score("rows.jsonl", "out.parquet", "--rows_per_part", "1") == 0
    table = pq.read_table("out.parquet")
    assert table["note"].to_pylist() == [1.0, 1.5, None]
    assert table["tags"].to_pylist() == [{"x": 1, "y": None}, {"x": None, "y": ["é"]}, None]
    assert table.column_names == ["prompt", "completion", "note", "tags", "score"]


def test_columns_of_data_sets_keep_their_types(score, capsys):
    features = Features(
        prompt=Value("string"),
        completion=Value("string"),
        label=ClassLabel(names=["a", "b"]),
        when=Value("timestamp[ms]"),
        size=Value("int8"),
    )
    when = datetime.datetime(2023, 5, 29)
    rows = [{"prompt": "Q ", "completion": "a" * n, "label": 1, "when": when, "size": n} for n in (1, 2, 3)]
    DatasetDict(test=Dataset.from_list(rows, features=features)).save_to_disk("rows")
    assert score("rows", "out.parquet", "--split", "test") == 0
    assert Dataset.from_parquet("out.parquet").features == Features(**features, score=Value("float64"))
    assert score("rows", "out.jsonl", "--split", "test") == 2
    assert "cannot be written as JSON: Object of type datetime" in capsys.readouterr().err
    assert score("rows", "out.jsonl") == 2
    assert "rows has no split `train`, only test." in capsys.readouterr().err


@pytest.mark.parametrize("source", ["folder", "rows.csv", "rows.arrow"])
def test_other_forms_score_the_same(score, source):
    rows = preference_rows(7)
    write_lines("rows.jsonl", rows)
    assert score("rows.jsonl", "expected.jsonl", "--rows_per_part", "3") == 0
    if source == "folder":
        Path(source).mkdir()
        write_lines("folder/train.jsonl", preference_rows(2, start=7))
        write_lines("folder/test.jsonl", rows)
    elif source == "rows.csv":
        rows.to_csv(source)
    else:
        with pa.ipc.new_file(source, rows.data.table.schema) as file:
            file.write_table(rows.data.table)
    words = ["--split", "test"] if source == "folder" else []
    assert score(source, "out.jsonl", "--rows_per_part", "3", *words) == 0
    assert Path("out.jsonl").read_bytes() == Path("expected.jsonl").read_bytes()


# Lines that cannot be scored

BAD = [
    ('{"prompt": "Q ", "chosen": "yes",', "not JSON: Expecting property name"),
    ("[1, 2]", "a JSON value of type list; expected an object"),
    ('{"prompt": "Q ", "chosen": "x"}', "no column `rejected`"),
    ('{"prompt": "Q ", "chosen": 3, "rejected": "a"}', "`chosen` in row 4 of the rows.jsonl dataset is of type int"),
    ('{"prompt": null, "chosen": "a", "rejected": "b"}', "`prompt` in row 5 of the rows.jsonl dataset is None"),
    ('{"prompt": "", "completion": "a"}', "`prompt` in row 6 of the rows.jsonl dataset is empty"),
    ('{"prompt": "Q ", "completions": []}', "`completions` in row 7 of the rows.jsonl dataset is empty"),
    ('{"prompt": "Q ", "completions": ["a", null]}', "`completions[1]` in row 8 of the rows.jsonl dataset is None"),
    (
        '{"prompt": "Q\\ud800 ", "completion": "a"}',
        "`prompt` in row 9 of the rows.jsonl dataset has half of a surrogate pair",
    ),
    ('{"prompt": "Q ", "completion": "a", "images": ["x.png"]}', "the row has `images`"),
    ('{"prompt": "Q ", "prompt_ids": [1], "completion_ids": [[2]]}', "the row has token ids but no text"),
    ('{"question": "Q"}', "no column `completions`"),
    ('{"prompt": "caf\\xe9", "completion": "a"}', "not UTF-8: byte 0xe9 at byte 16 (invalid continuation byte)"),
]


@pytest.mark.parametrize("rows_per_part", ["2", "100"])
def test_bad_lines(score, reward_model, capsys, rows_per_part):
    good = [dict(row) for row in preference_rows(2)] + ranking_rows(1).to_list()
    good.append({"prompt": "Q ", "completion": "é", "meta": "\ud800"})  # half a character, in a column not scored
    texts = [json.dumps(good[0]), "", *(text for text, _ in BAD), *map(json.dumps, good[1:])]
    Path("rows.jsonl").write_bytes("\n".join(texts).replace("\\xe9", "\udce9").encode(errors="surrogateescape"))
    assert score("rows.jsonl", "out.jsonl", "--rows_per_part", rows_per_part) == 1
    found = read_lines("out.jsonl")
    assert [{name: row[name] for name in given} for row, given in zip(found, good, strict=True)] == good
    pair = reward_model.score([good[1]["prompt"]], [[good[1]["chosen"], good[1]["rejected"]]])[0]
    assert [found[1]["score_chosen"], found[1]["score_rejected"]] == same(pair)
    assert found[3]["score"] == same(reward_model.score(["Q "], ["é"])[0])

    errors = read_lines("out.jsonl.errors.jsonl")
    assert [(error["row"], error["line"]) for error in errors] == [(n - 2, n) for n in range(3, 16)]
    for error, (text, problem) in zip(errors, BAD, strict=True):
        assert problem in error["error"] and error["text"] == text
    printed = capsys.readouterr().err
    assert "13 of 17 rows could not be scored:\n  row 1 (line 3): not JSON" in printed and "... and 8 more" in printed
    assert printed.endswith("They are in out.jsonl.errors.jsonl.\nWrote out.jsonl: 4 rows.\n")

    # The next run without bad lines leaves no errors of this one
    write_lines("rows.jsonl", good)
    assert score("rows.jsonl", "out.jsonl", "--overwrite") == 0
    assert sorted(os.listdir()) == ["out.jsonl", "rows.jsonl"]


def test_bad_rows_of_a_data_set(score, reward_model):
    rows = [
        {"prompt": "Q ", "chosen": text, "rejected": "b", "id": n} for n, text in enumerate(["a", None, "c", None])
    ]
    Dataset.from_list(rows).to_parquet("rows.parquet")
    for output in ("out.parquet", "out.jsonl"):
        assert score("rows.parquet", output, "--rows_per_part", "3") == 1
        errors = read_lines(f"{output}.errors.jsonl")
        assert [error["row"] for error in errors] == [1, 3] and errors[1]["values"] == rows[3]
    found = pq.read_table("out.parquet").to_pylist()
    assert found == read_lines("out.jsonl") and [row["id"] for row in found] == [0, 2]
    assert [row["score_chosen"] for row in found] == same(reward_model.score(["Q "] * 2, ["a", "c"]))


def test_no_good_row(score, capsys):
    Path("rows.jsonl").write_text("no\nno\n")
    assert score("rows.jsonl", "out.jsonl") == 1
    assert "Did not write out.jsonl: no rows." in capsys.readouterr().err
    assert sorted(os.listdir()) == ["out.jsonl.errors.jsonl", "rows.jsonl"]


def test_a_type_that_parquet_has_no_form_for(score, capsys):
    Dataset.from_list([{"prompt": "Q ", "completion": "a", "meta": {}}]).save_to_disk("rows")
    assert score("rows", "out.parquet") == 2
    assert "The rows cannot be written as Parquet: Cannot write struct type 'meta'" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["rows"]  # before anything is scored


def test_rows_that_are_no_table(score, capsys):
    write_lines("rows.jsonl", [{"prompt": "Q ", "completion": "a", "meta": value} for value in (1, "x")])
    assert score("rows.jsonl", "out.parquet") == 2
    assert "do not fit the columns of a Parquet file" in capsys.readouterr().err
    os.rename("out.parquet.parts", "out.jsonl.parts")  # as the message says
    assert score("rows.jsonl", "out.jsonl") == 0
    assert [row["meta"] for row in read_lines("out.jsonl")] == [1, "x"]


# Killed and resumed


@pytest.fixture
def scored_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of rows that the reward model is given."""
    sizes: list[int] = []
    original = ImplicitRewardModel.score_tokenized

    def counting(self: ImplicitRewardModel, rows: Any) -> Any:
        sizes.append(len(rows))
        return original(self, rows)

    monkeypatch.setattr(ImplicitRewardModel, "score_tokenized", counting)
    return sizes


@pytest.mark.float32  # as another process computes
@pytest.mark.slow
def test_killed_and_resumed(score, model, scored_parts):
    lines = [json.dumps(row) for row in preference_rows(200)]
    lines[7] = lines[110] = "junk"
    Path("rows.jsonl").write_text("\n".join(lines))
    assert score("rows.jsonl", "straight.jsonl", "--rows_per_part", "2") == 1
    assert len(scored_parts) == 100

    command = ["-m", "trl_dpo_ext.cli", "score", *model, "rows.jsonl", "--output", "out.jsonl"]
    program = forked.start([*command, "--rows_per_part", "2"], Path("log"))
    third = Path("out.jsonl.parts/part-000002.jsonl")
    end = time.monotonic() + 60
    while not third.exists() and time.monotonic() < end:
        time.sleep(0.001)
    program.process.kill()
    assert program.wait(60) == -signal.SIGKILL
    assert not Path("out.jsonl").exists()
    done = {path.name for path in Path("out.jsonl.parts").glob("part-*.jsonl")}
    assert 3 <= len(done) < 100

    third.write_text(third.read_text()[:-20])  # what a full disk may leave; a killed process does not
    scored_parts.clear()
    assert score("rows.jsonl", "out.jsonl", "--rows_per_part", "2") == 1
    assert len(scored_parts) == 100 - len(done) + 1
    for suffix in ("", ".errors.jsonl"):
        assert Path(f"out.jsonl{suffix}").read_bytes() == Path(f"straight.jsonl{suffix}").read_bytes()
    assert not Path("out.jsonl.parts").exists()


@pytest.fixture
def interrupted(score, capsys) -> str:
    """A run of two parts of which the second was not finished: its row has a column already."""
    rows = [{"prompt": "Q ", "completion": "a"}, {"prompt": "Q ", "completion": "b", "score": 1}]
    write_lines("rows.jsonl", rows)
    assert score("rows.jsonl", "out.jsonl", "--rows_per_part", "1") == 2
    assert "Row 1 (line 2) of rows.jsonl already has a column `score`. Rename it, or pass" in capsys.readouterr().err
    assert sorted(os.listdir("out.jsonl.parts")) == ["lock", "part-000000.jsonl", "run.json"]
    return "out.jsonl"


def test_other_settings_are_refused(score, model, interrupted, capsys, scored_parts, tmp_path):
    def refused(*words: str) -> str:
        assert score("rows.jsonl", interrupted, "--overwrite_columns", *words) == 2
        return capsys.readouterr().err

    one = ("--rows_per_part", "1")
    assert "with other settings: `beta` was 0.1, is 0.2. To resume that run" in refused(*one, "--beta", "0.2")
    assert "`rows_per_part` was 1, is 512" in refused()
    assert "`max_length` was 512, is 100; `max_prompt_length` was 256, is 50" in refused(*one, "--max_length", "100")
    assert "`policy` changed; `reference` changed" in refused(*one, "--dtype", "bfloat16")
    other = save_tiny(tiny_llama(2), tiny_tokenizer(bos=True), tmp_path / "other")
    assert main(["score", other, *model[1:], "rows.jsonl", "--output", interrupted, *one]) == 2
    assert "`policy` changed; `tokenizer` changed. To resume that run" in capsys.readouterr().err
    write_lines("other.jsonl", [{"prompt": "Q ", "completion": "a"}])
    assert score("other.jsonl", interrupted, *one) == 2
    assert "`rows` changed." in capsys.readouterr().err

    assert not scored_parts
    assert score("rows.jsonl", interrupted, "--overwrite_columns", *one) == 0  # the same settings
    assert scored_parts == [1]
    assert [set(row) for row in read_lines(interrupted)] == [{"prompt", "completion", "score"}] * 2


def test_an_adapter_and_its_options(llama_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = lora_config(init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama_folder), config).save_pretrained("adapter")
    tiny_tokenizer().save_pretrained("adapter")
    before = sorted(os.listdir("adapter"))
    rows = [{"prompt": "Q ", "completion": text} for text in ("a", "b", "c")]
    write_lines("rows.jsonl", [*rows[:2], rows[2] | {"score": 0}])
    words = ["score", "adapter", "rows.jsonl", "--output", "out.jsonl", "--beta", "0.1", "--rows_per_part", "1"]
    assert main(words) == 2
    adapter = json.loads(Path("adapter/adapter_config.json").read_text())
    Path("other").symlink_to("adapter")
    Path("adapter/adapter_config.json").write_text(json.dumps(adapter | {"lora_alpha": 9}))
    assert main([*words, "--overwrite_columns"]) == 2
    assert "with other settings: `policy` changed. To resume that run" in capsys.readouterr().err
    Path("adapter/adapter_config.json").write_text(json.dumps(adapter))
    words[1] = "other"  # another name of the same
    assert main([*words, "--overwrite_columns"]) == 0
    expected = ImplicitRewardModel.from_pretrained("adapter", beta=0.1).score(["Q "] * 3, ["a", "b", "c"])
    assert [row["score"] for row in read_lines("out.jsonl")] == same(expected)
    assert max(map(abs, expected)) > 0.01
    assert sorted(os.listdir("adapter")) == before  # nothing is written beside a model


def test_overwrite(score, interrupted, scored_parts, capsys):
    words = ("--rows_per_part", "1", "--overwrite", "--overwrite_columns")
    assert score("rows.jsonl", interrupted, *words, "--beta", "0.2") == 0  # other settings: anew
    assert scored_parts == [1, 1]
    before = read_lines(interrupted)
    assert score("rows.jsonl", interrupted, "--overwrite_columns") == 2
    assert "out.jsonl already exists. Pass --overwrite to replace it." in capsys.readouterr().err
    assert score("rows.jsonl", interrupted, *words) == 0
    after = read_lines(interrupted)
    assert [row["score"] for row in after] == same([row["score"] / 2 for row in before])


def test_a_folder_that_is_in_the_way(score, capsys):
    write_lines("rows.jsonl", [{"prompt": "Q ", "completion": "a"}])
    Path("mine.jsonl.parts").mkdir()
    Path("mine.jsonl.parts/notes.txt").touch()
    assert score("rows.jsonl", "mine.jsonl", "--overwrite") == 2
    assert "mine.jsonl.parts is needed for the parts, but it has other contents." in capsys.readouterr().err
    assert os.listdir("mine.jsonl.parts") == ["notes.txt"]


def test_a_second_run_on_one_output(score, capsys):
    write_lines("rows.jsonl", [{"prompt": "Q ", "completion": "a"}])
    with ScoredParts(Path("out.jsonl")).locked():
        assert score("rows.jsonl", "out.jsonl", "--overwrite") == 2
        assert "Another run writes out.jsonl (it has locked out.jsonl.parts/lock)" in capsys.readouterr().err
    assert score("rows.jsonl", "out.jsonl") == 0
    assert sorted(os.listdir()) == ["out.jsonl", "rows.jsonl"]


def test_links_in_the_folder_of_the_parts(score):
    write_lines("rows.jsonl", [{"prompt": "Q ", "completion": "a"}, {"prompt": 1}])
    Path("precious").write_text("mine")
    os.mkdir("out.jsonl.parts")
    for name in ("joined.tmp", "errors.tmp"):
        Path("out.jsonl.parts", name).symlink_to("../precious")
    for name in ("out.jsonl", "out.jsonl.errors.jsonl"):
        Path(name).symlink_to("precious")
    assert score("rows.jsonl", "out.jsonl", "--overwrite") == 1
    assert Path("precious").read_text() == "mine"
    assert not any(path.is_symlink() for path in Path().iterdir())


# Several processes


def launch(words: list[str], seconds: int = 100) -> tuple[list[int], str]:
    """Two processes. Returns their exit statuses and what they printed."""
    programs = forked.start_ranks(2, ["-m", "trl_dpo_ext.cli", "score", *words], Path("logs"))
    return forked.wait_for_all(programs, seconds), "".join(program.output for program in programs)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.float32
def test_two_processes_write_the_same_bytes(score, model):
    rows = [dict(row) for row in preference_rows(21)]
    write_lines("rows.jsonl", rows)
    assert score("rows.jsonl", "one.jsonl", "--rows_per_part", "4") == 0
    statuses, printed = launch([*model, "rows.jsonl", "--output", "two.jsonl", "--rows_per_part", "4"])
    assert statuses == [0, 0], printed
    assert printed.count("Wrote two.jsonl: 21 rows.") == 1
    assert Path("one.jsonl").read_bytes() == Path("two.jsonl").read_bytes()


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.float32
def test_a_process_that_fails_ends_both(score, model):
    rows = [{"prompt": "Q ", "completion": "a" * n} for n in range(1, 7)]
    write_lines("rows.jsonl", rows[:3] + [rows[3] | {"score": 1}] + rows[4:])  # the second process's second part
    statuses, printed = launch([*model, "rows.jsonl", "--output", "out.jsonl", "--rows_per_part", "1"])
    assert all(statuses)
    assert "trl-dpo-ext score: Row 3 (line 4) of rows.jsonl already has a column `score`." in printed
    assert not Path("out.jsonl").exists()
    # One process goes on where the two ended
    write = ("--rows_per_part", "1", "--overwrite_columns")
    assert score("rows.jsonl", "out.jsonl", *write) == 0 == score("rows.jsonl", "straight.jsonl", *write)
    assert Path("out.jsonl").read_bytes() == Path("straight.jsonl").read_bytes()


# What a user may get wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rwos.jsonl"], "`ROWS`: rwos.jsonl does not exist. Did you mean rows.jsonl?"),
        (["empty.jsonl"], "empty.jsonl has no rows."),
        (["array.json"], "array.json begins like a JSON array, and is not one: Expecting ',' delimiter"),
        (["garbage.parquet"], "garbage.parquet cannot be read: Parquet file size is 1 bytes"),
        (["notes.txt"], "`ROWS`: notes.txt is not a .jsonl, .json, .parquet, .csv or .arrow file."),
        (["folder"], "`ROWS`: folder has no rows."),
        (["no/data-set"], "no/data-set is no file and no folder, and as the name of a dataset: "),
        (["rows.jsonl", "--split", "test"], "`split`: rows.jsonl has no split `test`, only train."),
        (["rows.jsonl", "--dataset_config", "x"], "`dataset_config='x'` has no effect on rows.jsonl."),
        (["rows.jsonl", "--rows_per_prat", "3"], "there is no option --rows_per_prat. Did you mean --rows_per_part?"),
        (["rows.jsonl", "--rows_per_part=0"], "argument --rows_per_part: 0 is not a whole number above 0"),
        (["rows.jsonl", "--output", "out.csv"], "argument --output: out.csv must end in .jsonl or .parquet"),
        (["rows.jsonl", "--beta", "-1"], "argument --beta: -1 is not a finite number above 0"),
        (["rows.jsonl", "--beta", "nan"], "argument --beta: nan is not a finite number above 0"),
        (["rows.jsonl", "--beta", "1e300"], "argument --beta: 1e300 is not a finite number above 0 and at most 1e8"),
        (["rows.jsonl", "--max_length", "9" * 5000], "is not a whole number above 0 and at most 2147483647"),
    ],
)
def test_messages(score, capsys, words, message):
    write_lines("rows.jsonl", [{"prompt": "Q ", "completion": "a"}])
    Path("empty.jsonl").write_text("\n\n")
    Path("array.json").write_text('[{"prompt": 1} {}]')
    Path("garbage.parquet").write_text("?")
    Path("notes.txt").touch()
    Path("folder").mkdir()
    Path("folder/a.jsonl").touch()
    try:
        status = score(words[0], "out.jsonl", *words[1:])
    except SystemExit as exit_of_argparse:
        status = int(exit_of_argparse.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err
    assert not Path("out.jsonl").exists() and not Path("out.jsonl.parts").exists()


def test_models_that_are_not_there(score, capsys, tmp_path):
    write_lines("rows.jsonl", [{"prompt": "Q ", "completion": "a"}])
    assert main(["score", "no-model", "rows.jsonl", "--output", "out.jsonl"]) == 2
    assert "no-model is not a folder, and as a hub name it gives: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [("score", "exit status: 0, all rows are scored; 1, some "), ("sample", "exit status: 0, OUTPUT has all samples")],
)
def test_help_loads_no_torch(command, says):
    script = f"import sys; from trl_dpo_ext.cli import main\ntry: main(['{command}', '--help'])\n"
    script += "except SystemExit: pass\n"
    printed = subprocess.run(
        [sys.executable, "-c", script + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    ).stdout
    assert says in printed and printed.endswith("False\n")
