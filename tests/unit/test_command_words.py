"""Words of the commands that train nothing: one line and the status 2 for what is wrong, before anything is loaded."""

import os
import sys

import pytest

from trl_dpo_ext.cli import main


DOCTOR = ["doctor", "rows.jsonl", "--tokenizer", "model"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*DOCTOR, "--max_lenght", "9"], "there is no option --max_lenght. Did you mean --max_length?"),
        ([*DOCTOR, "--max_lenght=9"], "there is no option --max_lenght. Did you mean --max_length?"),
        (["doctor", "rows.jsonl", "--tokeniser", "m"], "there is no option --tokeniser. Did you mean --tokenizer?"),
        ([*DOCTOR, "--qqq"], "there is no option --qqq."),
        ([*DOCTOR, "--score_tie_gap", "-1"], "argument --score_tie_gap: -1 is not a finite number of at least 0"),
        ([*DOCTOR, "--score_tie_gap", "inf"], "argument --score_tie_gap: inf is not a finite number of at least 0"),
        ([*DOCTOR, "--score_tie_gap", "abc"], "argument --score_tie_gap: abc is not a finite number of at least 0"),
        ([*DOCTOR, "--max_completions", "1"], "argument --max_completions: 1 is not a whole number of at least 2"),
        ([*DOCTOR, "--max_length", "1" + "0" * 5000], "0... is not a whole number above 0 and at most 2147483647"),
        ([*DOCTOR, "--rows", "²"], "argument --rows: ² is not a whole number above 0"),
        ([*DOCTOR, "--json", "."], "argument --json: . is a folder."),
        ([*DOCTOR, "--json", "none/report.json"], "argument --json: there is no folder none."),
        ([*DOCTOR, "--tokenization", "seperate"], "argument --tokenization: invalid choice: 'seperate'"),
        (["doctor"], "the following arguments are required: ROWS, --tokenizer."),
        (["report", ".", "--ouput", "x"], "there is no option --ouput. Did you mean --output?"),
        (["report"], "the following arguments are required: RUN_DIR."),
        (["env", "--al"], "there is no option --al."),
        (["score", "m", "rows.jsonl", "--outptu", "x.jsonl"], "there is no option --outptu. Did you mean --output?"),
        (["score", "m", "rows.jsonl"], "the following arguments are required: --output."),
        (["prompts", "tldr"], "the following arguments are required: --output."),
        (
            ["prompts", "imdb", "--output", "o.jsonl"],
            "argument TASK: invalid choice: 'imdb' (choose from 'hh', 'tldr', ",
        ),
        (["prompts", "hh", "--output", "o.jsonl", "--num", "0"], "--num: 0 is not a whole number above 0"),
        (["prompts", "hh", "--output", "none/o.jsonl"], "argument --output: there is no folder none."),
        (["sample", "m", "p.jsonl"], "the following arguments are required: --output."),
        (["sample", "m", "p.jsonl", "--num_sample", "2"], "no option --num_sample. Did you mean --num_samples?"),
        (["sample", "m", "p.jsonl", "--temperature", "-1"], "--temperature: -1 is not a finite number of at least 0"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_refused(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="^2$"):
        main(words)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"trl-dpo-ext {words[0]}: ") and says in err
    assert err.count("\n") == 1 and len(err) < 400


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_report_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(SystemExit, match="^2$"):
        main([*DOCTOR, "--json", str(tmp_path / "shut" / "report.json")])
    assert "shut cannot be written to" in capsys.readouterr().err
