"""Before the first update: rewards exactly 0 and a loss of exactly log 2, whatever the reference comes from."""

import math

import pytest
import torch
from closeness import EXACT, ROUNDING, same
from integration.conftest import BFLOAT16_REWARD, updates
from peft import get_peft_model
from tiny import lora_config, preference_rows, tiny_llama, tiny_tokenizer


pytestmark = pytest.mark.usefixtures("float64")


def _changed_in_memory():
    model = tiny_llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    return model


def _trained_adapter():
    model = get_peft_model(tiny_llama(), lora_config(init_lora_weights=False))
    return model


SOURCES = {
    "path": lambda folder: (folder, {}),
    "instance": lambda folder: (tiny_llama(), {}),
    "instance changed in memory": lambda folder: (_changed_in_memory(), {}),
    "new adapter": lambda folder: (tiny_llama(), {"peft_config": lora_config()}),
    "trained adapter": lambda folder: (_trained_adapter(), {}),
}


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=pytest.mark.float32)], ids=["float64", "bf16"])
@pytest.mark.parametrize("source", SOURCES)
def test_first_loss_is_log_two(trained, llama_folder, source, bf16):
    model, kwargs = SOURCES[source](llama_folder)
    trainer = trained(
        model,
        {"max_steps": 2, "bf16": bf16},
        processing_class=tiny_tokenizer(),
        **kwargs,
    )
    first, second = updates(trainer)
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0
    # Autocast takes the loss of rewards that are exactly 0 in float32
    assert first["loss"] == pytest.approx(math.log(2), rel=ROUNDING if bf16 else EXACT)
    assert second["rewards/margins"] != 0.0


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=pytest.mark.float32)], ids=["float64", "bf16"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
def test_cached_reference_starts_at_the_policy(trained, llama_folder, tmp_path, adapter, bf16):
    trainer = trained(
        llama_folder,
        {
            "max_steps": 1,
            "bf16": bf16,
            "precompute_ref_log_probs": True,
            "precompute_ref_batch_size": 3,
            "ref_logps_cache_dir": str(tmp_path / "cache"),
        },
        peft_config=lora_config() if adapter else None,
    )
    assert trainer.ref_model is None
    first = updates(trainer)[0]
    tolerance = BFLOAT16_REWARD if bf16 else EXACT  # batches of another shape
    assert abs(first["rewards/chosen"]) < tolerance and abs(first["rewards/rejected"]) < tolerance


def test_reference_free_rewards_are_beta_log_pi(trained):
    trainer = trained(tiny_llama(), {"max_steps": 1, "reference_free": True}, processing_class=tiny_tokenizer())
    first = updates(trainer)[0]
    assert trainer.ref_model is None
    assert first["rewards/chosen"] == same(0.1 * first["logps/chosen"])


def test_two_trainers_on_one_model(trained):
    model = tiny_llama()
    for _ in range(2):
        trainer = trained(model, {"max_steps": 2}, processing_class=tiny_tokenizer())
        first, second = updates(trainer)
        assert first["loss"] == same(math.log(2))
        assert second["rewards/margins"] != 0.0
        assert not torch.equal(trainer.ref_model.lm_head.weight, model.lm_head.weight)


def test_two_trainers_on_one_peft_model(trained):
    model = get_peft_model(tiny_llama(), lora_config())
    for _ in range(2):
        trainer = trained(model, {"max_steps": 2}, processing_class=tiny_tokenizer())
        first, second = updates(trainer)
        assert first["loss"] == same(math.log(2))
        assert second["rewards/margins"] != 0.0


def test_an_instance_without_a_path_works(trained):
    model = tiny_llama()
    model.config._name_or_path = ""
    trainer = trained(model, {"max_steps": 1}, processing_class=tiny_tokenizer())
    assert updates(trainer)[0]["loss"] == same(math.log(2))


def test_log_probabilities_that_the_data_brings_are_used(trained, llama_folder):
    live = trained(llama_folder, {"max_steps": 3})
    rewards = live.predict(preference_rows(12)).predictions  # after training, to have other numbers
    brought = preference_rows(12)
    reference = _reference_logps(live)
    brought = brought.add_column("ref_chosen_logps", reference[:, 0].tolist())
    brought = brought.add_column("ref_rejected_logps", reference[:, 1].tolist())
    trainer = trained(llama_folder, {"max_steps": 3}, train_dataset=brought)
    assert trainer.ref_model is None
    assert [u["loss"] for u in updates(trainer)] == same([u["loss"] for u in updates(live)])
    assert trainer.predict(brought).predictions == same(rewards)
    with pytest.raises(ValueError, match="ref_chosen_logps"):
        trainer.evaluate(preference_rows(4))


def _reference_logps(trainer) -> torch.Tensor:
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    return torch.stack(trainer.compute_ref_log_probs(trainer.ref_model, batch), dim=1).double()
