"""A whole run of the authors' trainer, repeated: same texts, losses, learning rates, gradient norms and weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer


RUN = Path(__file__).parents[1] / "golden" / "authors_run"


@pytest.fixture(scope="module")
def recorded() -> dict:
    return json.loads((RUN / "run.json").read_text())


@pytest.fixture(scope="module")
def trainer(recorded: dict, tmp_path_factory: pytest.TempPathFactory) -> DPOPaperTrainer:
    rows = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for micro in recorded["micro"]
        for prompt, chosen, rejected in zip(
            *(micro["text"][name] for name in ("prompt", "chosen_response_only", "rejected_response_only")),
            strict=True,
        )
    ]
    config = recorded["config"]
    args = DPOPaperConfig(
        str(tmp_path_factory.mktemp("authors_run")),
        preset="authors_code",
        beta=config["loss"]["beta"],
        learning_rate=config["lr"],
        warmup_steps=config["warmup_steps"],
        global_batch_size=config["batch_size"],
        per_device_train_batch_size=config["batch_size"] // config["gradient_accumulation_steps"],
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    assert args.max_grad_norm == config["max_grad_norm"] and args.max_length == config["max_length"]
    trainer = DPOPaperTrainer(model=str(RUN / "tiny"), args=args, train_dataset=Dataset.from_list(rows))
    trainer.train()
    return trainer


def test_the_run_starts_from_the_authors_weights(trainer: DPOPaperTrainer):
    recorded = np.load(RUN / "weights.npz")
    for name, weight in trainer.ref_model.state_dict().items():
        np.testing.assert_array_equal(weight.numpy(), recorded[f"initial/{name}"], err_msg=name)


def test_losses_rates_and_gradient_norms_are_the_authors(trainer: DPOPaperTrainer, recorded: dict):
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    losses = torch.tensor([micro["loss"] for micro in recorded["micro"]]).view(len(logs), -1).mean(dim=1)
    assert [entry["loss"] for entry in logs] == pytest.approx(losses.tolist(), abs=2e-5)
    assert [entry["learning_rate"] for entry in logs] == pytest.approx(
        [u["lr"] for u in recorded["updates"]], rel=1e-12
    )
    expected = [update["grad_norm_before_clip"] for update in recorded["updates"]]
    assert [entry["grad_norm"] for entry in logs] == pytest.approx(expected, rel=1e-4)


def test_the_final_weights_are_the_authors(trainer: DPOPaperTrainer, recorded: dict):
    weights = np.load(RUN / "weights.npz")
    final = {name.removeprefix("final/dpo_notrunc/"): weights[name] for name in weights if name.startswith("final/")}
    ours = {name: weight.numpy() for name, weight in trainer.model.state_dict().items()}
    distance = sum(float(((ours[name] - final[name]) ** 2).sum()) for name in final if name != "lm_head.weight") ** 0.5
    moved = sum(
        float(((final[name] - weights[f"initial/{name}"]) ** 2).sum()) for name in final if name != "lm_head.weight"
    )
    assert distance / moved**0.5 < 1e-4
