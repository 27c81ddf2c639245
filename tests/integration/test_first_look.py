"""What training says of the first rows: the worst finding of the doctor, in one line, for every trainer."""

import json
import logging
import time

import pytest
from datasets import Dataset
from integration.conftest import TINY
from tiny import preference_rows, save_tiny, tiny_llama, tiny_tokenizer

from trl_dpo_ext import (
    DPOPaperConfig,
    DPOPaperTrainer,
    PreferredFTConfig,
    PreferredFTTrainer,
    RankingDPOConfig,
    RankingDPOTrainer,
    UnlikelihoodConfig,
    UnlikelihoodTrainer,
)
from trl_dpo_ext.cli import main
from trl_dpo_ext.trainers.first_look import warn_of_text


TOKENIZER = tiny_tokenizer()
PAIRS = preference_rows(8, "chat")
RANKINGS = Dataset.from_list(
    [{"prompt": f"Is it {i}?", "completions": [f" Yes, {i}.", f" No {i}."], "system": "Be brief."} for i in range(4)]
)
TRAINERS = [
    (DPOPaperTrainer, DPOPaperConfig),
    (UnlikelihoodTrainer, UnlikelihoodConfig),
    (PreferredFTTrainer, PreferredFTConfig),
    (RankingDPOTrainer, RankingDPOConfig),
]


def lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "The doctor found" in record.getMessage()]


def build(trainer_class, config_class, folder, rows, tokenizer=TOKENIZER, **options):
    args = config_class(str(folder), **TINY | options)
    return trainer_class(tiny_llama(), args=args, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize(("trainer_class", "config_class"), TRAINERS)
def test_every_trainer_names_the_worst(tmp_path, caplog, trainer_class, config_class):
    system = PAIRS.add_column("system", ["", "", "Be brief.", *["Be kind."] * 5])
    build(trainer_class, config_class, tmp_path, system)
    (line,) = lines(caplog)
    assert "`unread-column`" in line and "(row 2)" in line and "`system`" in line and "'Be brief.'" in line
    assert "\n" not in line
    caplog.clear()
    build(trainer_class, config_class, tmp_path, PAIRS)
    assert lines(caplog) == []


@pytest.mark.parametrize("preset", ["paper", "trl"])
def test_a_template_without_an_end(tmp_path, caplog, preset):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n{% endfor -%}", "\n{% endfor -%}")
    build(DPOPaperTrainer, DPOPaperConfig, tmp_path, PAIRS, tokenizer, preset=preset)
    (line,) = lines(caplog)
    assert "`no-end-of-answer`" in line


def test_rankings_and_streams(tmp_path, caplog):
    build(RankingDPOTrainer, RankingDPOConfig, tmp_path, RANKINGS)
    build(RankingDPOTrainer, RankingDPOConfig, tmp_path, RANKINGS.to_iterable_dataset(), max_steps=1)
    assert [("`system`" in line, "(row 0)" in line) for line in lines(caplog)] == [(True, True)] * 2


def test_evaluation_rows_are_not_looked_at(tmp_path, caplog):
    rows = PAIRS.add_column("system", ["Be brief."] * 8)
    args = DPOPaperConfig(str(tmp_path), **TINY)
    DPOPaperTrainer(tiny_llama(), args=args, train_dataset=PAIRS, eval_dataset=rows, processing_class=TOKENIZER)
    assert lines(caplog) == []


def test_only_the_main_process_looks(monkeypatch, caplog):
    rows = PAIRS.add_column("system", ["Be brief."] * 8)
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr("trl_dpo_ext.trainers.first_look.PartialState.is_main_process", False)
        warn_of_text(rows, TOKENIZER, "separate")
        assert lines(caplog) == []


def test_it_looks_at_a_few_rows_of_many(caplog):
    long = " and so on" * 200  # some 600 tokens
    rows = [
        {"prompt": f"Is it {i}?{long}", "chosen": f" Yes{long}{i}", "rejected": f" No{long}{i}"} for i in range(64)
    ]
    few, many = Dataset.from_list(rows), Dataset.from_list(rows * 40)
    seconds = []
    for dataset in (few, few, many):
        start = time.perf_counter()
        warn_of_text(dataset, TOKENIZER, "separate")
        seconds.append(time.perf_counter() - start)
    assert seconds[2] < 5 * seconds[1]


def test_the_commands_agree(tmp_path, capsys, caplog):
    folder = save_tiny(tiny_llama(), TOKENIZER, tmp_path / "model")
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row | {"system": "Be brief."}) for row in preference_rows(8).to_list()))
    assert main(["doctor", str(file), "--tokenizer", folder, "--json", str(tmp_path / "report.json")]) == 0
    (found,) = [
        f for f in json.loads((tmp_path / "report.json").read_text())["findings"] if f["name"] == "unread-column"
    ]
    assert (found["count"], found["rows"]) == (8, [0, 1, 2, 3, 4])
    options = {"model_name_or_path": folder, "dataset_name": str(file), "output_dir": str(tmp_path / "out")}
    command = ["dpo", *(word for name, value in options.items() for word in (f"--{name}", value))]
    command += ["--use_cpu", "true", "--max_steps", "1", "--report_to", "none"]
    capsys.readouterr()
    assert main([*command, "--dry_run"]) == 0
    assert "unread-column: 8 rows" in capsys.readouterr().out
    assert main(command) == 0
    (line,) = lines(caplog)
    assert "`unread-column`" in line
