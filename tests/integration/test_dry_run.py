"""`--dry_run`: what a training would do, against hand arithmetic and the training itself."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from tiny import preference_rows, tiny_llama
from trl import ModelConfig

from trl_dpo_ext import DPOPaperConfig, PreferredFTConfig, PreferredFTTrainer
from trl_dpo_ext.cli import main
from trl_dpo_ext.cli.memory import estimate_memory
from trl_dpo_ext.data.doctor.examination import examine


GIB = 2**30


def arguments(folder: Path, model: str, *more: str) -> list[str]:
    options = {
        "model_name_or_path": model,
        "dataset_name": str(folder / "rows.jsonl"),
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": "4",
        "use_cpu": "true",
    }
    return ["dpo", *(word for name, value in options.items() for word in (f"--{name}", value)), "--dry_run", *more]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    preference_rows(70).to_json(tmp_path / "rows.jsonl")
    return tmp_path


def test_it_says_what_training_would_do_and_does_nothing(rows, llama_folder, capsys):
    assert main(arguments(rows, llama_folder, "--beta", "0.25")) == 0
    printed = capsys.readouterr().out
    assert "beta: 0.25" in printed
    assert "Batches: 64 rows an update = 4 x 16 x 1" in printed
    assert "70 rows, 2 updates, 150 of warm-up." in printed
    assert "The train dataset: 70 rows of preference pairs examined" in printed
    parameters = sum(parameter.numel() for parameter in tiny_llama().parameters())
    assert f"({parameters:,} of {parameters:,} parameters trained" in printed
    weights = float(re.search(r"weights ([\d.e-]+)", printed)[1])
    assert weights == pytest.approx(4 * parameters / GIB, rel=1e-2)
    assert not (rows / "out").exists()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="takes bf16 as it is")
def test_a_recipe_for_a_gpu_where_there_is_none(rows, llama_folder, capsys):
    (rows / "gpu.yaml").write_text("bf16: true\ndry_run: true\n")
    words = ["--model_name_or_path", llama_folder, "--dataset_name", str(rows / "rows.jsonl")]
    assert main(["dpo", *words, "--output_dir", str(rows / "out"), "--config", str(rows / "gpu.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "accelerator" in printed.splitlines()[0] and "`use_cpu=True`" in printed.splitlines()[0]
    assert "\nbf16: true\n" in printed and "\nuse_cpu: true\n" in printed


def test_rows_that_training_would_not_take(rows, llama_folder, capsys):
    with open(rows / "rows.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}) + "\n")
    assert main(arguments(rows, llama_folder)) == 1
    assert "row-left-out: 1 row (70)" in capsys.readouterr().out


def test_rankings(tmp_path, llama_folder, capsys):
    rows = [{"prompt": "a?", "completions": completions} for completions in ([" b", " c"], None)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = arguments(tmp_path, llama_folder)
    assert main(["rank", *words[1:]]) == 1
    assert "malformed-row: 1 row (1)" in capsys.readouterr().out
    assert main(words) == 2
    assert "It holds rankings, as `RankingDPOTrainer` takes them (the command `rank`)" in capsys.readouterr().err


def test_preferred_answers(tmp_path, llama_folder, capsys):
    """Preferred-FT learns an answer by itself: one that equals the other is no reason to leave the row out."""
    rows = [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": " c", "rejected": ""}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["preferred-ft", *arguments(tmp_path, llama_folder)[1:]]
    assert main(words) == 0
    assert "The train dataset: 2 rows of preferred answers examined" in capsys.readouterr().out
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0] | {"chosen": ""}])))
    assert main(words) == 1
    assert "row-left-out: 1 row (2)" in capsys.readouterr().out
    rows = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path))
    args = PreferredFTConfig(str(tmp_path / "out"), use_cpu=True, report_to="none", max_steps=1)
    trainer = PreferredFTTrainer(llama_folder, args=args, train_dataset=rows)
    tokenizer = trainer.processing_class
    assert examine(rows, tokenizer, progress=False, alone=True).preparation == trainer.data_reports["train"]
    assert trainer.data_reports["train"].rows == 2


@pytest.mark.parametrize(
    ("optim", "bytes_each"), [("rmsprop", 4), ("adamw_torch", 8), ("sgd", 0), ("rmsprop_bnb_8bit", 1)]
)
def test_parts_of_the_memory(llama_folder, optim, bytes_each):
    args = DPOPaperConfig("out", optim=optim, use_cpu=True, gradient_checkpointing=False)
    found = estimate_memory(args, ModelConfig(llama_folder), reference_in_memory=True, tokens=1000)
    model = tiny_llama()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert found.parameters == found.trained == count
    sizes = {"weights": 4 * count, "gradients": 4 * count, "optimizer": bytes_each * count, "reference": 4 * count}
    assert {name: found.parts[name] for name in sizes} == sizes
    layers = model.config.num_hidden_layers
    assert found.parts["activations"] == 1000 * model.config.hidden_size * 4 * 17 * (layers + 1)


def test_an_adapter_trains_its_own_and_needs_no_second_model(llama_folder):
    args = DPOPaperConfig("out", use_cpu=True)
    config = ModelConfig(llama_folder, use_peft=True, lora_r=4, lora_target_modules=["all-linear"])
    found = estimate_memory(args, config, reference_in_memory=False, tokens=10)
    adapter = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained, _ = adapter.get_nb_trainable_parameters()
    assert found.trained == trained
    assert found.parts["weights"] == 4 * (found.parameters + trained)
    assert found.parts["gradients"] == found.parts["optimizer"] == 4 * trained  # RMSprop keeps one number
    assert found.parts["reference"] == 0


@pytest.mark.parametrize(
    ("environment", "sharded"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, {"weights", "gradients", "optimizer", "reference"}),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, {"gradients", "optimizer"}),
        ({}, set()),
    ],
    ids=["fsdp", "zero2", "ddp"],
)
def test_what_processes_share(llama_folder, environment, sharded, monkeypatch):
    args = DPOPaperConfig("out", use_cpu=True)
    whole = estimate_memory(args, ModelConfig(llama_folder), reference_in_memory=True, tokens=10).parts
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(type(args), "world_size", 4)
    parts = estimate_memory(args, ModelConfig(llama_folder), reference_in_memory=True, tokens=10).parts
    assert {name for name in parts if parts[name] == whole[name] / 4 and parts[name]} == sharded
