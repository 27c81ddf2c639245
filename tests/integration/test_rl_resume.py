"""Runs on Eq. 3 that are resumed: bit-equal, or refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from reinforced import changed_gpt2, logged, trainer_of

from trl_dpo_ext import KLTargetCallback
from trl_dpo_ext.report.run_data import read_run


# Two updates a generation: two of eight completions for PPO, one update for RLOO
OPTIONS = {"ppo": {"num_iterations": 2}, "rloo": {"num_iterations": 2}}
STEPS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "warmup_steps": 3}


def run(kind, folder, *, resume=None, model=None, **changed):
    trainer = trainer_of(kind, changed_gpt2() if model is None else model, folder, **OPTIONS[kind] | STEPS | changed)
    trainer.add_callback(KLTargetCallback(trainer, target=1.0, horizon=40))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module", params=["rloo", "ppo"])
def whole(request, tmp_path_factory):
    """A kind of trainer, a run without interruption, and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, run(request.param, folder), folder


def test_a_resumed_run_is_the_run(whole, tmp_path):
    kind, straight, folder = whole
    resumed = run(kind, tmp_path, resume=str(folder / "checkpoint-4"))
    assert resumed.beta == straight.beta != 0.1
    models = [(straight.model, resumed.model), (straight.ref_model, resumed.ref_model)]
    if kind == "ppo":
        models.append((straight.value_model, resumed.value_model))
    for one, other in models:
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    times = ("step_time",)
    expected, found = (
        [{name: value for name, value in log.items() if name not in times} for log in logged(trainer)]
        for trainer in (straight, resumed)
    )
    assert len(found) == 6 and found == expected
    runs = [read_run(path) for path in (folder, tmp_path)]
    assert runs[0].training == runs[1].training
    assert len(runs[1].training["loss"].steps) == 6 and runs[1].notes == []
    assert runs[1].training["kl_sequence"].values == [log["kl_sequence"] for log in found if "kl_sequence" in log]
    assert runs[1].settings["trainer"] == type(straight).__name__


def test_the_value_model_is_trained_and_not_part_of_the_policy(whole):
    kind, straight, folder = whole
    if kind == "rloo":
        assert not (folder / "checkpoint-4" / "value_model").exists()
        return
    head = straight.value_model.classifier
    assert head.weight.abs().max() > 0
    assert len(straight.optimizer.param_groups) == 3
    names = json.loads((folder / "checkpoint-4" / "config.json").read_text())["architectures"]
    assert names == ["GPT2LMHeadModel"]
    values = [log["value_loss"] for log in logged(straight)]
    assert values[0] > 0 and all(value >= 0 for value in values)


def test_checkpoints_within_a_generation_are_a_warning(tmp_path, caplog):
    options = {"num_iterations": 3, "gradient_accumulation_steps": 2, "save_strategy": "steps"}
    for save_steps, warnings in ((3, 0), (6, 0), (4, 1)):
        caplog.clear()
        trainer_of("rloo", changed_gpt2(), tmp_path, save_steps=save_steps, **options)
        assert len([line for line in caplog.messages if "Use a multiple of 3." in line]) == warnings


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder / "checkpoint-4", to / "checkpoint-4"))


def test_checkpoints_that_are_refused(whole, tmp_path):
    kind, _, folder = whole
    checkpoint = copied(folder, tmp_path)
    other = changed_gpt2()
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    with pytest.raises(ValueError, match="checkpoint-4 is of a run with another reference. Pass the model"):
        run(kind, tmp_path, resume=str(checkpoint), model=other)
    with pytest.raises(ValueError, match="checkpoint-4 is of a run with `beta=0.1`, not 0.2"):
        run(kind, tmp_path, resume=str(checkpoint), beta=0.2)
    with pytest.raises(ValueError, match="cannot be resumed from exactly: .* a multiple of 3, "):
        run(kind, tmp_path, resume=str(checkpoint), num_iterations=3)
    if kind == "ppo":
        shutil.rmtree(checkpoint / "value_model")
        with pytest.raises(ValueError, match="cannot be resumed from: it has no folder `value_model`"):
            run(kind, tmp_path, resume=str(checkpoint))
    (checkpoint / "trl_dpo_ext_rl.json").unlink()
    with pytest.raises(ValueError, match="cannot be resumed from: it has no trl_dpo_ext_rl.json"):
        run(kind, tmp_path, resume=str(checkpoint))
