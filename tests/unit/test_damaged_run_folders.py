"""`report` on damaged run folders: a page with notes or one message, and nothing outside the folder."""

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from trl_dpo_ext.cli import main
from trl_dpo_ext.report.page import html_page
from trl_dpo_ext.report.run_data import read_run
from trl_dpo_ext.report.summary import facts, summary_rows


METRICS = [
    {"step": 1, "epoch": 0.5, "loss": 0.69, "rewards/accuracies": 0.5, "rewards/margins": 0.0, "num_tokens": 90},
    {"step": 2, "epoch": 1.0, "loss": 0.55, "rewards/accuracies": 0.75, "rewards/margins": 0.2, "num_tokens": 180},
    {"step": 2, "eval_loss": 0.6, "eval_rewards/margins": 0.1, "eval_runtime": 2.0},
    {"step": 2, "train_runtime": 3.5, "train_loss": 0.62},
]
DISTRIBUTIONS = [{"step": 2, "name": "eval_rewards/margins", "edges": [-1.0, 0.0, 1.0], "counts": [1, 3]}]
SAMPLES = [{"step": 2, "name": "eval", "prompt": "Q", "policy": "a", "policy_reward": 0.5}]
FILES = {
    "run_log/metrics.jsonl": METRICS,
    "run_log/distributions.jsonl": DISTRIBUTIONS,
    "run_log/samples.jsonl": SAMPLES,
    "trl_dpo_ext.json": [{"trainer": "DPOPaperTrainer", "beta": 0.1, "reference": {"kind": "adapter off"}}],
}


def write_run(folder: Path) -> None:
    (folder / "run_log").mkdir(parents=True, exist_ok=True)
    for name, lines in FILES.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def report(folder: Path, capsys: pytest.CaptureFixture) -> str:
    """Status and messages of the command."""
    status = main(["report", str(folder)])
    said = capsys.readouterr()
    assert status in (0, 2) and "Traceback" not in said.err
    return f"{status} {said.err}{said.out}"


HUGE = ["1" + "0" * 400, "-1" + "0" * 5000, "1e308", "NaN", "1" + "0" * 15]


@pytest.mark.parametrize("number", HUGE)
def test_numbers_that_no_axis_can_show(tmp_path, capsys, number):
    write_run(tmp_path)
    for name in FILES:
        path = tmp_path / name
        text = path.read_text()
        for old in ("0.55", "0.2", "3.5", "-1.0", "1, 3", "0.5", "0.1"):
            text = text.replace(old, number)
        path.write_text(text)
    assert report(tmp_path, capsys).startswith("0 ")

    write_run(tmp_path)
    path = tmp_path / "run_log/metrics.jsonl"
    path.write_text(path.read_text().replace("0.55", number))
    notes = ["`loss` is not finite at 1 updates (crosses), the first 2."] if number != HUGE[-1] else []
    assert read_run(tmp_path).notes == notes
    write_run(tmp_path)
    path.write_text(path.read_text().replace('"step": 1,', f'"step": {number},'))
    assert read_run(tmp_path).notes == ["metrics.jsonl, line 1 has no whole number `step`: left out."]


@pytest.mark.parametrize("file", FILES)
def test_values_of_other_kinds(tmp_path, file):
    lines, drawn = FILES[file], []
    for value in (None, "x", True, [], {}, [[]], -1, 1e20):
        for name in lines[-1]:
            write_run(tmp_path)
            changed = [*lines[:-1], lines[-1] | {name: value}]
            (tmp_path / file).write_text("".join(json.dumps(line) + "\n" for line in changed))
            run = read_run(tmp_path)
            without_notes = replace(run, notes=[])
            if without_notes not in drawn:  # most are left out, and what is left is drawn once
                facts(run), summary_rows(run), html_page(run, [])
                drawn.append(without_notes)


@pytest.mark.parametrize("name", ["report.html", "report.png"])
def test_links_are_replaced(tmp_path, capsys, name):
    run, precious = tmp_path / "run", tmp_path / "precious"
    write_run(run)
    precious.write_text("mine")
    (run / name).symlink_to(precious)
    assert report(run, capsys).startswith("0 ")
    assert precious.read_text() == "mine" and not (run / name).is_symlink()
    assert sorted(os.listdir(run)) == ["report.html", "report.png", "run_log", "trl_dpo_ext.json"]


def test_a_folder_whose_name_is_no_text(tmp_path, capsys):
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 $x_$ <b>"))
    write_run(run)
    assert main(["report", str(run), "--output", str(tmp_path / "out")]) == 0
    assert "caf? $x_$ &lt;b&gt;" in (tmp_path / "out/report.html").read_text()


def test_fuzzed_folders(tmp_path, capsys):
    chance = random.Random(0)
    shapes = [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"step": 2, "step": "x"}', b"\0" * 99]
    for _ in range(4):
        write_run(tmp_path)
        path = tmp_path / chance.choice(list(FILES))
        content = bytearray(path.read_bytes())
        match chance.randrange(3):
            case 0:
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            case 1:
                del content[chance.randrange(len(content)) :]
            case _:
                content[:] = chance.choice(shapes)
        path.write_bytes(content)
        if chance.random() < 0.2:
            (tmp_path / "trainer_state.json").write_bytes(chance.choice(shapes))
        report(tmp_path, capsys)
