"""The doctor's report and its command."""

import json
import re
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from unit.conftest import GOOD
from unit.doctor_rows import OVERLONG, TOKENIZER, found, look, pairs

from trl_dpo_ext.cli import main


class TestReport:
    def test_the_page(self):
        page = str(
            look([*pairs(3), GOOD | {"chosen": None}, GOOD | {"prompt": "So", "chosen": "Yes"}], max_length=512)
        )
        assert page.startswith(
            "The train dataset: 5 rows of preference pairs examined\n"
            "After preparation: 4 rows (0 dropped), 0 prompts and 0 answers truncated; malformed: 1\n"
        )
        assert (
            "ERRORS\n\n"
            "  malformed-row: 1 row (3)\n"
            "    Training stops: `chosen` in row 3 of the train dataset is None.\n"
            "    Fix: Fill it in, or drop such rows with `dataset.filter`.\n\n"
            "WARNINGS\n\n"
            "  no-space-before-answer: 1 row (4)\n"
        ) in page
        assert page.endswith("1 error, 2 warnings, 1 note. Training would stop or drop rows. Fix the errors first.")

    def test_only_the_first_rows_are_named(self):
        finding = found(look([*pairs(1), *[GOOD | {"chosen": ""}] * 9]), "row-left-out")
        assert (finding.count, finding.rows) == (9, [1, 2, 3, 4, 5])
        assert "row-left-out: 9 rows (1, 2, 3, 4, 5, ...)" in str(look([*pairs(1), *[GOOD | {"chosen": ""}] * 9]))

    def test_json(self):
        report = look([GOOD, GOOD | {"chosen": ""}])
        loaded = json.loads(json.dumps(report.to_dict()))
        assert loaded["healthy"] is False
        assert loaded["preparation"]["first_dropped"] == "row 1, an answer is empty"
        assert loaded["findings"][0]["rows"] == [1]
        size = len(TOKENIZER(GOOD["prompt"])["input_ids"])
        assert loaded["lengths"]["prompt"] == {"median": size, "p95": size, "max": size}

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"tokenization": "together"}, "`tokenization='together'` does not exist"),
            ({"prompt_truncation_mode": "middle"}, "`prompt_truncation_mode='middle'` does not exist"),
        ],
    )
    def test_options_that_do_not_exist(self, options, says):
        with pytest.raises(ValueError, match=re.escape(says)):
            look([GOOD], **options)

    def test_images(self):
        with pytest.raises(ValueError, match="has the column `images`. Only text and chat"):
            look([GOOD | {"images": ["https://example.org/cat.png"]}])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    """The folder of a tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    return str(folder)


class TestCommand:
    @pytest.fixture
    def doctor(self, tmp_path, tokenizer, capsys):
        def run(rows: list[dict[str, Any]] | str, *argv: str) -> tuple[int, str, str]:
            if not isinstance(rows, str):
                path = tmp_path / "rows.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                rows = str(path)
            status = main(["doctor", rows, "--tokenizer", tokenizer, *argv])
            return status, *capsys.readouterr()

        return run

    def test_healthy(self, doctor):
        status, out, _ = doctor(pairs(4))
        assert status == 0
        assert out.endswith("0 errors, 0 warnings, 0 notes. Training would accept every row.\n")

    def test_errors(self, doctor, tmp_path):
        file = tmp_path / "report.json"
        status, out, _ = doctor([*pairs(4), GOOD | {"chosen": ""}], "--json", str(file))
        assert status == 1
        assert "row-left-out: 1 row (4)" in out
        assert json.loads(file.read_text())["findings"][0]["name"] == "row-left-out"

    def test_only_the_first_rows(self, doctor):
        status, out, _ = doctor([*pairs(4), GOOD | {"chosen": ""}], "--rows", "3")
        assert (status, out.split("\n")[0]) == (0, "The train dataset: 3 rows of preference pairs examined")

    def test_the_cut(self, doctor):
        rows = OVERLONG
        _, out, _ = doctor(rows, "--max_length", "100", "--max_prompt_length", "50")
        assert "5 rows (0 dropped), 3 prompts and 2 answers truncated" in out
        _, out, _ = doctor(rows, "--max_length", "100", "--tokenization", "joint")
        assert "4 rows (1 dropped), 0 prompts and 3 answers truncated" in out
        assert "nothing is truncated" in doctor(rows, "--max_length", "none")[1]

    @pytest.mark.parametrize("form", ["parquet", "json", "folder", "folders"])
    def test_forms(self, doctor, tmp_path, form):
        dataset, path = Dataset.from_list(pairs(4)), tmp_path / f"rows.{form}"
        if form == "folder":
            dataset.save_to_disk(path)
        elif form == "folders":
            DatasetDict({"train": dataset, "test": Dataset.from_list(pairs(2))}).save_to_disk(path)
        else:
            getattr(dataset, f"to_{form}")(path)
        status, out, _ = doctor(str(path))
        assert (status, out.split(":")[1].split()[0]) == (0, "4")
        if form == "folders":
            assert "held-out-prompts: 2 rows (0, 1)" in doctor(str(path), "--test_split", "test")[1]
            assert doctor(str(path), "--split", "test")[1].startswith("The test dataset: 2 rows")

    @pytest.mark.parametrize(
        ("argv", "says"),
        [
            (("--max_prompt_length", "600"), "`max_prompt_length=600` must be above 0 and below `max_length=512`."),
            (
                ("--tokenization", "joint", "--max_prompt_length", "9"),
                "`max_prompt_length=9` has no effect with `tokenization='joint'`",
            ),
        ],
    )
    def test_usage(self, doctor, argv, says):
        status, out, err = doctor([GOOD], *argv)
        assert (status, out) == (2, "")
        assert f"trl-dpo-ext doctor: {says}" in err

    @pytest.mark.parametrize("option", ["split", "test_split"])
    def test_no_split(self, doctor, tmp_path, option):
        status, out, err = doctor([GOOD], f"--{option}", "eval")
        assert (status, out) == (2, "")
        says = f"`{option}`: {tmp_path / 'rows.jsonl'} has no split `eval`, only train."
        assert err.endswith(f"trl-dpo-ext doctor: {says}\n")

    def test_no_file(self, doctor):
        assert doctor("absent.jsonl")[::2] == (2, "trl-dpo-ext doctor: `ROWS`: absent.jsonl does not exist.\n")

    @pytest.mark.parametrize("argv", [(), ("--tok", "x"), ("--rows", "0")])
    def test_options_that_argparse_refuses(self, argv, capsys):
        with pytest.raises(SystemExit) as stopped:
            main(["doctor", "rows.jsonl", *argv])
        assert stopped.value.code == 2
