"""What a user is told of updates, of the start of training, and in the summary of a run."""

import math

import pytest
import torch
import transformers
from datasets import Dataset
from tiny import lora_config, preference_rows, tiny_gpt2, tiny_llama
from unit.conftest import GOOD, says

from trl_dpo_ext import DPOPaperTrainer


def weights(trainer: DPOPaperTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_no_update(trainer: DPOPaperTrainer, before: dict[str, torch.Tensor]) -> None:
    assert trainer.state.global_step == 0
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


class TestUpdates:
    def test_a_stream_that_ends_before_one_update(self, build):
        trainer = build(preference_rows(8).to_iterable_dataset(), {"global_batch_size": 64})
        with says("ended after 2 micro-batches", "16", "Lower `global_batch_size`", "stream more rows"):
            trainer.train()

    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_weights_that_are_not_finite(self, build, accumulation):
        trainer = build(preference_rows(8), {"global_batch_size": 4 * accumulation})
        with torch.no_grad():
            trainer.model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
        before = weights(trainer)
        with says("Non-finite policy log-probabilities, losses in update 1", "Lower"):
            trainer.train()
        assert_no_update(trainer, before)

    def test_a_reference_that_is_not_finite(self, build):
        trainer = build(preference_rows(8), ref_model=tiny_llama(seed=1))
        with torch.no_grad():
            trainer.ref_model.lm_head.weight[0, 0] = math.nan
        before = weights(trainer)
        with says("Non-finite reference log-probabilities, losses in update 1"):
            trainer.train()
        assert_no_update(trainer, before)

    def test_a_later_update(self, build):
        class Poison(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, model, **kwargs):
                if state.global_step == 2:
                    model.lm_head.weight.data[0, 0] = math.inf

        trainer = build(preference_rows(16), {"max_steps": 4}, callbacks=[Poison()])
        with says("in update 3"):
            trainer.train()
        assert trainer.state.global_step == 2

    def test_a_loss_that_is_not_finite_is_not_filtered_away(self, build):
        assert build([GOOD]).args.logging_nan_inf_filter is False


class TestStart:
    """Rewards before the first update, which should be 0."""

    PART = "Implicit rewards before the first update should be 0, found up to"

    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_wrong_reference(self, build, accumulation):
        trainer = build(preference_rows(8), {"global_batch_size": 4 * accumulation})
        with torch.no_grad():
            trainer.model.lm_head.weight.mul_(1.1)
        before = weights(trainer)
        with says(self.PART, "Cause: wrong reference (copy in memory)", "`ref_model=`"):
            trainer.train()
        assert_no_update(trainer, before)

    def test_the_largest_reward_is_named(self, build):
        trainer = build([GOOD])
        with torch.no_grad():
            trainer.model.lm_head.weight.mul_(1.1)
        rewards = trainer.predict(Dataset.from_list([GOOD])).predictions
        with pytest.raises(ValueError, match=f"found up to {abs(rewards).max():.3g}"):
            trainer.train()

    def test_an_adapter_that_does_not_start_at_zero(self, build):
        trainer = build(preference_rows(8), peft_config=lora_config(init_lora_weights=False))
        before = weights(trainer)
        with says(self.PART, "Cause: adapter initialization", "`init_lora_weights=True`", "`ref_model=`"):
            trainer.train()
        assert_no_update(trainer, before)

    def test_dropout_warns_and_names_its_option(self, build, caplog):
        trainer = build(preference_rows(8), {"disable_dropout": False, "max_steps": 1}, model=tiny_gpt2())
        trainer.train()
        assert trainer.state.global_step == 1
        assert self.PART in caplog.text and "Cause: dropout" in caplog.text and "disable_dropout=True" in caplog.text

    def test_precision_warns(self, build, caplog):
        trainer = build(preference_rows(8), {"max_steps": 1})
        trainer.ref_model.bfloat16()
        trainer.train()
        assert "Cause: precision" in caplog.text and "weights of bfloat16, float32" in caplog.text

    def test_an_explicit_reference_is_not_judged(self, build, caplog):
        build(preference_rows(8), {"max_steps": 1}, ref_model=tiny_llama(seed=1)).train()
        assert self.PART not in caplog.text

    def test_a_right_one_is_not_mentioned(self, build, caplog):
        build(preference_rows(8), {"max_steps": 1}).train()
        assert self.PART not in caplog.text


@pytest.fixture
def said(build, capsys, caplog):
    """The line and the warnings of a run with these options, when it starts."""

    def of(options=None, rows=None, **kwargs):
        trainer = build(preference_rows(12) if rows is None else rows, options, **kwargs)
        caplog.clear()
        trainer.train()
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("DPOPaperTrainer")]
        return line, [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    return of


class TestRunSummary:
    def test_the_line_states_what_is_in_force(self, said):
        line, _ = said({"global_batch_size": 12, "max_length": 60, "beta": 0.25})
        assert line == (
            "DPOPaperTrainer (preset 'paper'): 12 rows an update = 4 x 3 x 1 (per device x accumulation x ranks), "
            "2 updates; rmsprop at 0.001, constant_with_warmup (k+1)/(W+1), warm-up 2; beta 0.25; float32 weights; "
            "reference: copy in memory; prompts: computed once (attention by segments, packed); "
            "data: 12 rows (0 dropped), 2 prompts and 4 answers truncated."
        )

    @pytest.mark.parametrize(
        ("options", "kwargs", "part"),
        [
            ({"bf16": True}, {}, "float32 weights under bf16 autocast"),
            ({}, {"peft_config": lora_config()}, "reference: adapter off"),
            ({"reference_free": True}, {}, "reference: none"),
            ({"preset": "trl"}, {}, "preset 'trl'"),
            ({"lr_scheduler_type": "cosine"}, {}, "cosine, warm-up 2"),
            ({}, {"rows": preference_rows(8).to_iterable_dataset()}, "data: streaming, not counted"),
        ],
        ids=["bf16", "adapter", "reference-free", "trl", "cosine", "stream"],
    )
    def test_parts_of_the_line(self, said, options, kwargs, part):
        assert part in said(options, **kwargs)[0]

    def test_a_usual_run_has_no_warning(self, said):
        assert said({"max_steps": 4})[1] == []

    def test_warm_up_that_does_not_end(self, said):
        (warning,) = said({"max_steps": 3, "warmup_steps": 5})[1]
        # The last of three updates runs at 3/6 of the peak
        assert "3 updates are fewer than twice the 5 of warm-up; the last runs at 0.0005 of 0.001" in warning
        assert "Lower `warmup_steps`" in warning

    @pytest.mark.parametrize(
        ("kwargs", "part"),
        [({}, "a model of 0.0 M parameters"), ({"peft_config": lora_config()}, "an adapter")],
        ids=["full", "adapter"],
    )
    def test_the_paper_s_rate_on_something_small(self, said, kwargs, part):
        (warning,) = said({"max_steps": 4, "learning_rate": 1e-6}, **kwargs)[1]
        assert "`learning_rate=1e-06`" in warning and part in warning and "Raise it" in warning

    def test_trl_s_rate_is_trl_s_business(self, said):
        assert said({"max_steps": 4, "learning_rate": 1e-6, "preset": "trl"})[1] == []

    def test_fsdp_that_accelerate_leaves_out(self, said, monkeypatch):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        (warning,) = said({"max_steps": 4})[1]
        assert "FSDP is set, but accelerate runs NO here" in warning

    def test_weights_in_half_precision(self, said):
        (warning,) = said({"max_steps": 4}, model=tiny_llama().bfloat16())[1]
        assert "The trained weights are bfloat16" in warning and "Load the model in float32" in warning
