"""A run writes over nothing that it reads."""

from pathlib import Path

import pytest
from tiny import preference_rows, save_tiny, tiny_llama, tiny_tokenizer

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer
from trl_dpo_ext.trainers.options.output_folder import check_output_dir


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    for name in ("model/reference", "run/checkpoint-3", "run/run_log", "run/merged", "run/base"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("output_dir", "source"),
    [
        ("model", "model"),
        ("model/", "./model"),
        ("run/../model", "model"),
        ("link", "model"),
        ("model", "link"),
        ("model/reference", "model"),
        ("run", "run/checkpoint-3"),
        ("run", "run/run_log"),
    ],
)
def test_refused(folder, output_dir, source):
    with pytest.raises(
        ValueError, match=rf"`output_dir='{output_dir}'`: the run would overwrite the model \({source}\)"
    ):
        check_output_dir(output_dir, {"the model": source})
    check_output_dir(output_dir, {"the model": None})


@pytest.mark.parametrize(
    ("output_dir", "source"),
    [
        ("model/run-1", "model"),
        ("run", "run/base"),
        ("run", "run/merged"),
        ("new", "model"),
        ("gpt2", "gpt2"),
        ("run", "run/checkpoint-4"),
    ],
)
def test_taken(folder, output_dir, source):
    check_output_dir(output_dir, {"the model": source})


@pytest.mark.parametrize("kind", ["path", "instance", "reference"])
def test_trainers(tmp_path, kind):
    path = save_tiny(tiny_llama(), tiny_tokenizer(), tmp_path / "model")
    loaded = tiny_llama().from_pretrained(path)
    model = {"path": path, "instance": loaded}.get(kind, tiny_llama())
    before = {file.name: file.read_bytes() for file in Path(path).iterdir()}
    with pytest.raises(ValueError, match=rf"the run would overwrite the (model|reference) \({path}\)"):
        DPOPaperTrainer(
            model,
            ref_model=loaded if kind == "reference" else None,
            args=DPOPaperConfig(path, use_cpu=True, report_to="none"),
            train_dataset=preference_rows(4),
            processing_class=tiny_tokenizer(),
        )
    assert {file.name: file.read_bytes() for file in Path(path).iterdir()} == before
