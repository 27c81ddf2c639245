"""The last updates of a run: their metrics in the log, finite weights, and the precision of computation."""

import json
import math
from pathlib import Path

import pytest
import torch
from closeness import EXACT, same
from integration.conftest import BFLOAT16_REWARD, updates
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import lora_config, preference_rows, tiny_llama, tiny_tokenizer
from transformers import TrainerCallback
from versions import needs

from trl_dpo_ext import DPOPaperTrainer, ImplicitRewardModel
from trl_dpo_ext.report.run_data import read_run
from trl_dpo_ext.trainers.forward.update_guard import all_finite


pytestmark = pytest.mark.usefixtures("float64")

METRICS = ("loss", "rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/rejected")


def _end(trainer) -> dict[str, float]:
    (end,) = [entry for entry in trainer.state.log_history if "train_runtime" in entry]
    return end


class _Stops(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


class TestMetricsOfTheLastWindow:
    @pytest.fixture
    def each(self, trained, llama_folder):
        """Metrics of every update, of a run that the other runs log in wider windows."""
        return updates(trained(llama_folder, {"folder": "each", "max_steps": 3}))

    @pytest.mark.parametrize(
        ("options", "callbacks", "in_windows"),
        [
            ({"logging_steps": 2}, None, 2),
            ({"logging_steps": 500}, None, 0),
            ({"logging_strategy": "no"}, None, 0),
            ({"logging_steps": 2, "max_steps": 6}, [_Stops()], 2),
            ({"logging_strategy": "epoch"}, None, 3),
            ({"logging_steps": 1}, None, 3),
        ],
        ids=["two", "never_reached", "no", "stopped_early", "epoch", "each"],
    )
    def test_the_end_has_them(self, trained, llama_folder, each, options, callbacks, in_windows):
        trainer = trained(llama_folder, {"max_steps": 3} | options, callbacks=callbacks)
        end, left = _end(trainer), each[in_windows:]
        for name in METRICS:
            expected = sum(entry[name] for entry in left) / len(left) if left else None
            assert end.get(name) == (same(expected) if left else None), name
        assert end.get("num_tokens") == (each[-1]["num_tokens"] if left else None)
        lines = Path(trainer.args.output_dir, "run_log", "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1]) == end

    def test_callbacks_and_the_result_of_train_have_them(self, config, llama_folder):
        seen = []

        class Reads(TrainerCallback):
            def on_log(self, args, state, control, logs=None, **kwargs):
                seen.append(logs.get("rewards/margins"))

        trainer = DPOPaperTrainer(
            llama_folder,
            args=config(max_steps=3, logging_steps=2),
            train_dataset=preference_rows(12),
            callbacks=[Reads()],
        )
        result = trainer.train()
        assert len(seen) == 2
        assert seen[-1] == result.metrics["rewards/margins"] == _end(trainer)["rewards/margins"]

    def test_the_report_draws_them(self, trained, llama_folder):
        trainer = trained(llama_folder, {"max_steps": 3, "logging_steps": 2})
        run = read_run(trainer.args.output_dir)
        assert run.training["rewards/margins"].steps == run.training["loss"].steps == [2, 3]
        assert run.training["loss"].values[-1] == _end(trainer)["loss"]
        assert run.evaluation == {} and run.seconds == _end(trainer)["train_runtime"]

    def test_a_resumed_run_has_them(self, trained, llama_folder):
        saves = {"max_steps": 3, "logging_steps": 2, "save_strategy": "steps", "save_steps": 2}
        straight = trained(llama_folder, saves)
        resumed = trained(llama_folder, saves, resume=f"{straight.args.output_dir}/checkpoint-2")
        for name in METRICS:
            assert _end(resumed)[name] == same(_end(straight)[name]), name

    def test_a_second_training_starts_without_those_of_one_that_failed(self, config, llama_folder):
        class Fails(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 2:
                    raise KeyError("on purpose")

        trainer = DPOPaperTrainer(
            llama_folder, args=config(max_steps=3, logging_steps=50), train_dataset=preference_rows(12)
        )
        fails = Fails()
        trainer.add_callback(fails)
        with pytest.raises(KeyError, match="on purpose"):
            trainer.train()
        trainer.remove_callback(fails)
        trainer.args.max_steps = 1
        metrics = trainer.train().metrics
        assert metrics["loss"] == same(metrics["train_loss"])

    def test_routers(self, trained, tiny_folder):
        trainer = trained(tiny_folder("moe"), {"max_steps": 3, "logging_steps": 2})
        assert _end(trainer)["aux_loss"] > 0


class _MakesGradients(DPOPaperTrainer):
    """Puts `value` into a gradient of update `update`."""

    update, value = 3, math.nan

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step == self.update - 1:
            self.model.model.layers[0].mlp.up_proj.weight.grad[0, :2] = self.value
        return loss


@pytest.mark.float32
class TestWeights:
    @pytest.fixture
    def make(self, config, llama_folder):
        def build(update=3, value=math.nan, **options):
            kind = type("Trainer", (_MakesGradients,), {"update": update, "value": value})
            return kind(llama_folder, args=config(max_steps=3, **options), train_dataset=preference_rows(12))

        return build

    # Of 1e30 the squares are no float32: the norm is infinite, and clipping makes every gradient 0
    @pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
    @pytest.mark.parametrize("logging", ["steps", "no"])
    def test_a_gradient_norm_of_the_last_update_that_is_not_finite(self, make, value, logging):
        trainer = make(value=value, logging_strategy=logging)
        with pytest.raises(ValueError, match="The gradient norm of update 3 is not finite"):
            trainer.train()

    def test_of_an_earlier_update(self, make):
        trainer = make(update=1, value=1e30)
        with pytest.raises(ValueError, match="The gradient norm of update 1 is not finite"):
            trainer.train()
        assert trainer.state.global_step == 1  # said before the next one was made

    def test_nothing_is_saved(self, make):
        trainer = make(save_strategy="steps", save_steps=1)
        with pytest.raises(ValueError, match="update 3"):
            trainer.train()
        folder = Path(trainer.args.output_dir)
        assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
        for name, tensor in load_file(folder / "checkpoint-2" / "model.safetensors").items():
            assert tensor.isfinite().all(), name

    def test_weights_that_the_last_update_broke(self, config, llama_folder):
        class Breaks(TrainerCallback):
            def on_step_end(self, args, state, control, model, **kwargs):
                if state.global_step == 2:
                    model.lm_head.weight.data[0, 0] = math.nan

        trainer = DPOPaperTrainer(
            llama_folder, args=config(max_steps=2), train_dataset=preference_rows(12), callbacks=[Breaks()]
        )
        with pytest.raises(ValueError, match="The weights are not finite after update 2, and are not saved"):
            trainer.train()
        with pytest.raises(ValueError, match="not finite after update 2"):
            trainer.save_model()
        assert not Path(trainer.args.output_dir, "model.safetensors").exists()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_all_finite(self, dtype, value):
        whole = [torch.nn.Parameter(torch.full((3, 5), 6e4, dtype=dtype)), torch.nn.Parameter(torch.empty(0))]
        broken = torch.nn.Parameter(torch.zeros(4, 4, dtype=dtype))
        broken.data[2, 1] = value
        assert all_finite(whole) and not all_finite([*whole, broken])
        assert all_finite([*whole, broken.requires_grad_(False)])  # what is not trained was not made here


class TestNothingToTrain:
    def _trainer(self, config, model, optimizers=(None, None), **options):
        return DPOPaperTrainer(
            model,
            args=config(max_steps=2, **options),
            train_dataset=preference_rows(8),
            processing_class=tiny_tokenizer(),
            optimizers=optimizers,
        )

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_an_adapter_loaded_for_inference(self, config, tmp_path, checkpointing):
        get_peft_model(tiny_llama(), lora_config(init_lora_weights=False)).save_pretrained(tmp_path / "adapter")
        model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")
        trainer = self._trainer(config, model, gradient_checkpointing=checkpointing)
        with pytest.raises(ValueError, match="No parameter .* requires a gradient.*`.*is_trainable=True"):
            trainer.train()
        assert trainer.state.global_step == 0
        assert trainer.predict(preference_rows(4)).predictions == same(0)  # which needs no gradient

    def test_a_frozen_model(self, config):
        with pytest.raises(ValueError, match="No parameter .* requires a gradient.*`requires_grad_\\(True\\)`"):
            self._trainer(config, tiny_llama().requires_grad_(False)).train()

    def test_a_learning_rate_of_0(self, config):
        with pytest.raises(ValueError, match=r"`learning_rate=0\.0` must be a finite number above 0"):
            config(learning_rate=0.0)

    def test_an_optimizer_of_another_model(self, config):
        optimizer = torch.optim.SGD(tiny_llama().parameters(), lr=0.1)
        with pytest.raises(ValueError, match="`optimizers` has no trainable parameter"):
            self._trainer(config, tiny_llama(), optimizers=(optimizer, None)).train()

    def test_an_optimizer_of_the_base_of_an_adapter(self, config):
        model = tiny_llama()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="`optimizers` has no trainable parameter"):
            self._trainer(config, get_peft_model(model, lora_config()), optimizers=(optimizer, None)).train()

    def test_an_adapter_scaled_by_0(self, config):
        model = get_peft_model(tiny_llama(), lora_config(lora_alpha=0))
        with pytest.raises(ValueError, match="The gradient of update 1 is 0.*`lora_alpha=0`"):
            self._trainer(config, model).train()

    @needs("peft", "0.20", "adapters that are not active are trained")
    def test_an_adapter_that_is_not_active(self, config):
        model = get_peft_model(tiny_llama(), lora_config())
        model.add_adapter("other", lora_config())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".other." in name)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trainer = self._trainer(config, model)
        with pytest.raises(ValueError, match="does not depend on any parameter of the optimizer"):
            trainer.train()
        for name, tensor in before.items():
            assert torch.equal(model.state_dict()[name], tensor), name

    def test_an_own_optimizer_trains_twice(self, config):
        model = tiny_llama()
        trainer = self._trainer(config, model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None))
        for _ in range(2):
            before = model.lm_head.weight.clone()
            trainer.train()
            assert not torch.equal(before, model.lm_head.weight)


class TestPrecision:
    @pytest.mark.parametrize(
        ("asked", "used"), [("fp16", "no"), pytest.param("bf16", "bf16", marks=pytest.mark.float32), (None, "no")]
    )
    @pytest.mark.parametrize("by", ["option", "environment"])
    def test_what_was_computed_in_is_recorded(self, trained, llama_folder, caplog, monkeypatch, asked, used, by):
        options = {asked: True} if asked and by == "option" else {}
        if asked and by == "environment":
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        trainer = trained(llama_folder, {"max_steps": 2} | options)
        trainer.save_model()
        folder = trainer.args.output_dir
        assert json.loads(Path(folder, "trl_dpo_ext.json").read_text())["mixed_precision"] == used
        assert (f"`{asked}` is set, but accelerate" in caplog.text) == (asked == "fp16")
        rows = preference_rows(6, start=20)
        logged = trainer.predict(rows).predictions
        for model in (
            ImplicitRewardModel.from_pretrained(folder, reference=llama_folder),
            ImplicitRewardModel.from_trainer(trainer),
        ):
            assert model.mixed_precision == used
            scores = model.score_rows(rows)
            assert scores == pytest.approx(logged, abs=BFLOAT16_REWARD if used == "bf16" else EXACT)
