"""`UnlikelihoodTrainer`: losses, gradients and weights against plain torch, its reference, and its guard."""

import math
from typing import Any

import pytest
import torch
import trl
from closeness import same
from integration.conftest import TINY, assert_trains_as_plain_torch, builder, token_logps, updates
from tiny import lora_config, preference_rows, tiny_llama, tiny_tokenizer

from trl_dpo_ext import UnlikelihoodConfig, UnlikelihoodTrainer


pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def make(tmp_path):
    """Builds a trainer on 12 rows."""
    return builder(UnlikelihoodTrainer, tmp_path)


def loss_by_hand(model: torch.nn.Module, row: dict[str, Any], alpha: float, form: str) -> torch.Tensor:
    chosen, rejected = (token_logps(model, row["prompt_ids"], row[name]) for name in ("chosen_ids", "rejected_ids"))
    if form == "sequence":
        return -chosen.sum() + alpha * rejected.sum()
    return -chosen.sum() - alpha * torch.log(1 - rejected.exp()).sum()


@pytest.mark.parametrize("form", ["sequence", "token"])
@pytest.mark.parametrize("alpha", [0.05, 1.0])
def test_a_run_is_plain_torch(make, alpha, form):
    trainer = make(
        alpha=alpha, unlikelihood_form=form, optim="sgd", learning_rate=1e-4, max_steps=3, max_grad_norm=1.0
    )
    assert_trains_as_plain_torch(
        trainer, lambda model, batch: torch.stack([loss_by_hand(model, row, alpha, form) for row in batch]).mean()
    )


class TestReference:
    def test_none_by_default(self, make):
        trainer = make(max_steps=1)
        trainer.train()
        assert trainer.ref_model is None and trainer.reference.kind == "none"
        logged = updates(trainer)[0]
        assert logged["rewards/chosen"] == same(trainer.beta * logged["logps/chosen"])

    def test_one_that_is_passed_is_what_rewards_are_against(self, make):
        reference = tiny_llama(seed=1)
        trainer = make(ref_model=reference, max_steps=1)
        rows = trainer.train_dataset.to_list()[:4]
        with torch.no_grad():
            expected = [
                0.1
                * (
                    token_logps(tiny_llama(), row["prompt_ids"], row["chosen_ids"]).sum()
                    - token_logps(reference, row["prompt_ids"], row["chosen_ids"]).sum()
                )
                for row in rows
            ]
        trainer.train()
        assert updates(trainer)[0]["rewards/chosen"] == same(torch.stack(expected).mean().item())

    @pytest.mark.parametrize("options", [{}, {"peft_config": lora_config()}], ids=["copy", "adapter off"])
    def test_the_start_of_training_on_request(self, make, options):
        trainer = make(reference_free=False, max_steps=2, **options)
        trainer.train()
        first, second = updates(trainer)
        assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0
        assert second["rewards/rejected"] < 0.0

    def test_it_changes_no_gradient(self, make):
        free, with_reference = (make(reference_free=free, max_steps=2) for free in (True, False))
        for trainer in (free, with_reference):
            trainer.train()
        for ours, theirs in zip(free.model.parameters(), with_reference.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_contradictions(self, make):
        with pytest.raises(ValueError, match="`ref_model` has no effect with `reference_free=True`"):
            make(reference_free=True, ref_model=tiny_llama(seed=1))
        with pytest.raises(
            ValueError, match="`precompute_ref_log_probs=True` has no effect with `reference_free=True`"
        ):
            make(precompute_ref_log_probs=True)


class TestGuard:
    def test_a_run_that_diverges_stops(self, make):
        trainer = make(learning_rate=0.05, divergence_guard=12.0, num_train_epochs=20)
        with pytest.raises(ValueError, match=r"Diverged in update \d+, .*below -12.0 nats"):
            trainer.train()
        assert trainer.state.global_step < 60

    def test_it_can_be_switched_off(self, make):
        trainer = make(learning_rate=0.05, divergence_guard=None, num_train_epochs=4)
        trainer.train()
        rejected = [entry["logps/rejected"] for entry in updates(trainer)]
        assert rejected[-1] < rejected[0] < 0 and math.isfinite(rejected[-1])

    def test_the_token_form_is_bounded(self, make):
        trainer = make(learning_rate=0.01, unlikelihood_form="token", num_train_epochs=4)
        trainer.train()
        assert min(entry["loss"] for entry in updates(trainer)) > 0


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"alpha": 1.5}, r"`alpha=1.5` must lie in \[0, 1\]"),
            ({"alpha": -0.1}, r"`alpha=-0.1` must lie in \[0, 1\]"),
            ({"unlikelihood_form": "tokens"}, "`unlikelihood_form='tokens'` does not exist"),
            ({"divergence_guard": 0.0}, "`divergence_guard=0.0` must be above 0"),
            ({"loss_type": "ipo"}, "has no effect on this objective"),
            ({"label_smoothing": 0.1}, "`label_smoothing=0.1` has no effect on this objective"),
        ],
    )
    def test_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            UnlikelihoodConfig("out", **TINY | options)

    def test_a_config_of_trl(self, tmp_path):
        args = trl.DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=1)
        trainer = UnlikelihoodTrainer(
            tiny_llama(), args=args, train_dataset=preference_rows(8), processing_class=tiny_tokenizer()
        )
        assert (trainer.args.alpha, trainer.args.preset) == (1.0, "trl")


class TestSameNumbers:
    """Invariants of the base trainer, on this objective."""

    @pytest.mark.parametrize(
        "options",
        [
            {"per_device_train_batch_size": 2},
            {"share_prompt": False},
            {"gradient_checkpointing": True},
            {"completions_per_forward": 1},
            {"train_dataset": preference_rows(12).to_iterable_dataset(), "max_steps": 3},
        ],
        ids=["accumulated", "separate rows", "checkpointing", "in parts", "stream"],
    )
    @pytest.mark.parametrize("form", ["sequence", "token"])
    def test_as_straight(self, make, options, form):
        straight, other = (make(unlikelihood_form=form, **some) for some in ({}, options))
        for trainer in (straight, other):
            trainer.train()
        assert len(updates(straight)) == len(updates(other)) == 3
        for one, two in zip(updates(straight), updates(other), strict=True):
            for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
                assert two[name] == same(one[name])

    def test_resumed(self, make, tmp_path):
        straight = make(save_strategy="steps", save_steps=1)
        straight.train()
        resumed = make()
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
        for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_lora_is_saved_and_predicts(self, make):
        trainer = make(peft_config=lora_config(), reference_free=False, eval_dataset=preference_rows(5, start=20))
        trainer.train()
        rows = preference_rows(5, start=20)
        rewards = trainer.predict(rows).predictions
        assert rewards.shape == (5, 2)
        assert trainer.evaluate()["eval_rewards/chosen"] == same(rewards[:, 0].mean())
