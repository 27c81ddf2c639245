"""A disk that is full: one message, no half checkpoint, and the run goes on when there is space. A real small disk."""

import subprocess
from pathlib import Path

import pytest
from tiny import preference_rows

from trl_dpo_ext.cli import main


@pytest.fixture
def disk(tmp_path: Path):
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def train(folder: Path, model: str, rows: Path, *more: str) -> int:
    options = {
        "model_name_or_path": model,
        "dataset_name": str(rows),
        "output_dir": str(folder / "out"),
        "global_batch_size": "4",
        "per_device_train_batch_size": "4",
        "max_steps": "4",
        "save_steps": "2",
        "learning_rate": "1e-3",
        "warmup_steps": "1",
        "report_to": "none",
        "use_cpu": "true",
    }
    return main(["dpo", *(word for name, value in options.items() for word in (f"--{name}", value)), *more])


def test_the_run_stops_in_words_and_goes_on_when_there_is_space(disk, llama_folder, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    preference_rows(16).to_json(rows)
    assert train(tmp_path / "enough", llama_folder, rows) == 0
    size = sum(path.stat().st_size for path in (tmp_path / "enough" / "out" / "checkpoint-2").iterdir())
    blocker = disk / "blocker"
    blocker.write_bytes(bytes(4 * 2**20 - int(1.5 * size)))  # room for one checkpoint and a half
    capsys.readouterr()

    assert train(disk, llama_folder, rows) == 1
    said = capsys.readouterr().err
    assert "The disk is full: " in said and "checkpoint-4 could not be written" in said
    assert "`save_total_limit`" in said and "Traceback" not in said
    assert [path.name for path in (disk / "out").glob("checkpoint-*")] == ["checkpoint-2"]

    blocker.unlink()
    assert train(disk, llama_folder, rows, "--resume_from_checkpoint", str(disk / "out" / "checkpoint-2")) == 0
    resumed, straight = ((folder / "out" / "model.safetensors").read_bytes() for folder in (disk, tmp_path / "enough"))
    assert resumed == straight


def test_a_checkpoint_of_another_run(tiny_folder, llama_folder, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    preference_rows(16).to_json(rows)
    assert train(tmp_path, llama_folder, rows) == 0
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    assert train(tmp_path / "other", tiny_folder("qwen2"), rows, "--resume_from_checkpoint", checkpoint) == 1
    said = capsys.readouterr().err
    assert "another reference policy" in said and "Traceback" not in said
