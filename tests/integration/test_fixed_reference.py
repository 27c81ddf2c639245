"""The reference is at the end of a training what it was at its start, or the training is refused."""

from typing import Any

import pytest
import torch
from closeness import EXACT
from integration.conftest import TINY
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    OFTConfig,
    PeftModel,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from tiny import lora_config, preference_rows, tiny_gpt2, tiny_llama, tiny_qwen2, tiny_tokenizer

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer, RankingDPOConfig, RankingDPOTrainer


pytestmark = pytest.mark.usefixtures("float64")


def trainer_of(folder: Any, model: Any, options: dict[str, Any] | None = None, **keywords: Any) -> DPOPaperTrainer:
    return DPOPaperTrainer(
        model,
        args=DPOPaperConfig(str(folder), **TINY | {"max_steps": 3, "learning_rate": 0.01} | (options or {})),
        train_dataset=preference_rows(8),
        processing_class=tiny_tokenizer(),
        **keywords,
    )


def reference_logps(trainer: DPOPaperTrainer) -> torch.Tensor:
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        return trainer.reference_logps(trainer.read_batch(batch))[0]


def trained(model: torch.nn.Module, size: float = 0.1) -> torch.nn.Module:
    """The model as if its adapter had been trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("how", ["a new adapter", "a trained one"])
def test_trained_biases_are_refused(bias, how, tmp_path):
    adapter = lora_config(bias=bias)
    start = {"peft_config": adapter} if how == "a new adapter" else {}
    model = tiny_qwen2() if start else trained(get_peft_model(tiny_qwen2(), adapter))
    with pytest.raises(ValueError, match=r"weights outside the adapter.*q_proj.*bias.*`bias='none'`.*`ref_model=`"):
        trainer_of(tmp_path, model, **start)


def test_trained_biases_with_a_reference_of_its_own(tmp_path):
    trainer = trainer_of(tmp_path, tiny_qwen2(), peft_config=lora_config(bias="all"), ref_model=tiny_qwen2())
    before = reference_logps(trainer)
    trainer.train()
    assert torch.equal(reference_logps(trainer), before)
    biases = dict(tiny_qwen2().named_parameters())["model.layers.0.self_attn.k_proj.bias"]
    name = "base_model.model.model.layers.0.self_attn.k_proj.bias"
    assert not torch.equal(dict(trainer.model.named_parameters())[name], biases)


def test_norms_that_a_user_trains_are_refused(tmp_path):
    model = get_peft_model(tiny_llama(), lora_config())
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.requires_grad_(True)
    with pytest.raises(ValueError, match=r"4 weights outside the adapter.*layers\.0\.input_layernorm\.weight"):
        trainer_of(tmp_path, model)


def test_rankings_are_checked_too(tmp_path):
    rows = preference_rows(4)
    rows = rows.map(
        lambda row: {"completions": [row["chosen"], row["rejected"]]}, remove_columns=["chosen", "rejected"]
    )
    with pytest.raises(ValueError, match="weights outside the adapter.*q_proj"):
        RankingDPOTrainer(
            tiny_qwen2(),
            args=RankingDPOConfig(str(tmp_path), **TINY),
            train_dataset=rows,
            processing_class=tiny_tokenizer(),
            peft_config=lora_config(bias="all"),
        )


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["norm", "embed_tokens"]},
        {"trainable_token_indices": [20, 30, 40]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=str,
)
def test_what_peft_keeps_the_original_of_is_trained(options, tmp_path):
    trainer = trainer_of(tmp_path, tiny_llama(), peft_config=lora_config(**options))
    before = reference_logps(trainer)
    trainer.train()
    assert torch.equal(reference_logps(trainer), before)


def test_tied_embeddings(tmp_path):
    trainer = trainer_of(
        tmp_path, tiny_gpt2(), peft_config=lora_config(target_modules=["c_attn"], trainable_token_indices=[20, 30])
    )
    before = reference_logps(trainer)
    trainer.train()
    assert torch.equal(reference_logps(trainer), before)


def test_what_starts_to_move_later_is_found_at_the_end(tmp_path):
    """Before training all is right; a callback, or code between the two, thaws the norms."""
    trainer = trainer_of(tmp_path, tiny_llama(), peft_config=lora_config())
    for name, parameter in trainer.model.named_parameters():
        if "norm" in name:
            parameter.requires_grad_(True)
    before = reference_logps(trainer)
    with pytest.raises(ValueError, match="The reference policy changed during training") as error:
        trainer.train()
    moved = float((reference_logps(trainer) - before).abs().max())
    assert f"by {moved:.3g} nats" in str(error.value)


def test_sync_ref_model_moves_it_on_purpose(tmp_path):
    options = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
    trainer = trainer_of(tmp_path, tiny_llama(), options)
    before = reference_logps(trainer)
    trainer.train()
    assert (reference_logps(trainer) - before).abs().max() > 1e-3


def test_a_reference_that_shares_weights(tmp_path):
    policy, reference = tiny_llama(), tiny_llama()
    reference.model = policy.model
    with pytest.raises(
        ValueError, match=r"`ref_model` and the policy share 20 trained weights.*model\.embed_tokens\.weight"
    ):
        trainer_of(tmp_path, policy, ref_model=reference)
    # The same memory under two parameters
    policy, reference = tiny_llama(), tiny_llama()
    reference.lm_head.weight.data = policy.lm_head.weight.data
    with pytest.raises(ValueError, match=r"share 1 trained weights.*\(lm_head\.weight\)"):
        trainer_of(tmp_path, policy, ref_model=reference)


def test_the_base_of_the_policy_as_reference(tmp_path):
    base = tiny_llama()
    policy = get_peft_model(base, lora_config())
    with pytest.raises(ValueError, match=r"share 8 trained weights.*lora_A"):
        trainer_of(tmp_path, policy, ref_model=base)


def test_a_peft_model_as_reference(tmp_path):
    reference = get_peft_model(tiny_llama(), lora_config())
    with pytest.raises(ValueError, match=r"`ref_model` is a PEFT model.*merge_and_unload\(\)"):
        trainer_of(tmp_path, tiny_llama(), ref_model=reference)


# TRL copies weights by the name `.default.`, and PEFT keeps these under names that end in `.default`
ADAPTERS = {
    "embedding": lora_config(target_modules=["q_proj", "embed_tokens"]),
    "tokens": lora_config(trainable_token_indices=[20, 30, 40]),
    "dora": lora_config(use_dora=True),
    "ia3": IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
    "vera": VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "loha": LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "lokr": LoKrConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "oft": OFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], oft_block_size=4),
    "norms": LNTuningConfig(task_type="CAUSAL_LM", target_modules=["norm"]),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_copy_of_a_trained_adapter(name, tmp_path):
    policy = trained(get_peft_model(tiny_llama(), ADAPTERS[name]))
    trainer = trainer_of(tmp_path, policy)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    before = reference_logps(trainer)
    with torch.no_grad():
        torch.testing.assert_close(
            before, trainer.runner.run_policy(trainer.model, trainer.read_batch(batch)).logps, rtol=EXACT, atol=EXACT
        )
    trainer.train()
    assert torch.equal(reference_logps(trainer), before)


def test_names_of_adapters(tmp_path):
    named = get_peft_model(tiny_llama(), lora_config(), adapter_name="mine")
    with pytest.raises(ValueError, match=r"active adapter is 'mine'.*'default'.*`ref_model=`"):
        trainer_of(tmp_path, named)
    trainer_of(tmp_path, named, ref_model=tiny_llama()).train()

    def two() -> PeftModel:
        model = get_peft_model(tiny_llama(), lora_config())
        model.add_adapter("other", lora_config())
        return model

    trainer_of(tmp_path, two()).train()
    model = two()
    model.set_adapter("other")
    with pytest.raises(ValueError, match="active adapter is 'other'"):
        trainer_of(tmp_path, model)
    model = two()
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="active adapter is 'default' and 'other'"):
        trainer_of(tmp_path, model)


def test_adalora_is_still_an_adapter(tmp_path):
    adapter = AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=100, tinit=1, tfinal=1)
    trainer = trainer_of(tmp_path, tiny_llama(), peft_config=adapter)
    before = reference_logps(trainer)
    trainer.train()
    assert torch.equal(reference_logps(trainer), before)
