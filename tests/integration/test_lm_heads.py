"""Log-probabilities are those of the model's own logits, whatever its head does: TRL's fused head is checked once."""

from typing import Any

import pytest
import torch
from closeness import EXACT
from integration.conftest import TINY
from peft import LoraConfig, get_peft_model
from tiny import preference_rows, tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head
from versions import needs

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer, ImplicitRewardModel
from trl_dpo_ext.batches import stacked_to_pairs
from trl_dpo_ext.models.lm_head import CheckedHead, score_logits


pytestmark = pytest.mark.usefixtures("float64")

DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 384,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}

# Types, of all that transformers 5.23 has, whose head TRL's fused one gets wrong, with an example of each reason
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "soft cap by another name": (
        "recurrent_gemma",
        {"block_types": ["recurrent", "attention"], "lru_width": 32, "logits_soft_cap": 3.0, "num_key_value_heads": 1},
    ),
    "dense layer before the decoder": ("modernbert-decoder", {"classifier_bias": True, "decoder_bias": True}),
    "prediction head of an encoder": ("bert", {"is_decoder": True}),
    "output rescaled": ("rembert", {"is_decoder": True, "input_embedding_size": 16, "output_embedding_size": 24}),
}


def build(kind: str, options: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **DECODER | options)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


@torch.no_grad()
def by_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed log-probabilities `(B, 2)`, each row alone, from the logits of the model's own forward."""
    found = []
    for ids, attention, completion in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        length = int(attention.sum())
        row = ids[:length][None]
        logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits
        logps = logits[:, :-1].log_softmax(-1).gather(-1, row[:, 1:, None])[0, :, 0]
        found.append((logps * completion[1:length]).sum())
    return stacked_to_pairs(torch.stack(found))


def trainer_of(model: Any, folder: str, **keywords: Any) -> DPOPaperTrainer:
    return DPOPaperTrainer(
        model,
        args=DPOPaperConfig(folder, **TINY),
        train_dataset=preference_rows(4),
        processing_class=tiny_tokenizer(),
        **keywords,
    )


def policy_logps(trainer: DPOPaperTrainer) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        return trainer.runner.run_policy(trainer.model, trainer.read_batch(batch)).logps, batch


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs("transformers", "5.23", "RemBERT is not causal"))
        if "rescaled" in name
        else name
        for name in HEADS
    ],
)
def test_other_heads(name, tmp_path):
    model = build(*HEADS[name])
    trainer = trainer_of(model, str(tmp_path))
    found, batch = policy_logps(trainer)
    expected = by_logits(model, batch)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)

    # And by the scorer: rewards are 0.1 log pi without a reference
    rows = preference_rows(4)
    scorer = ImplicitRewardModel(model, None, tiny_tokenizer(), beta=0.1, reference_free=True, progress=False)
    scores = torch.tensor(scorer.score(rows["prompt"], [[row["chosen"], row["rejected"]] for row in rows]))
    torch.testing.assert_close(scores, 0.1 * expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    ("option", "value"), [("final_logit_softcapping", 1.0), ("logit_scale", 0.25), ("logits_scaling", 4.0)]
)
def test_an_option_that_the_model_does_not_read(option, value, tmp_path):
    """A Llama whose config has another model's option: TRL's fused head scales its logits, the model does not."""
    model = tiny_llama()
    setattr(model.config, option, value)
    found, batch = policy_logps(trainer_of(model, str(tmp_path)))
    torch.testing.assert_close(found, by_logits(tiny_llama(), batch), rtol=EXACT, atol=EXACT)


def test_trained_tokens_of_tied_embeddings(tmp_path):
    """PEFT wraps a tied head, too, and TRL's fused head asks the wrapper for a bias."""
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], trainable_token_indices=[20, 30])
    model = get_peft_model(tiny_gpt2(), adapter)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    trainer = trainer_of(model, str(tmp_path))
    found, batch = policy_logps(trainer)
    torch.testing.assert_close(found, by_logits(model, batch), rtol=EXACT, atol=EXACT)


def test_values_and_gradients_are_those_of_the_fused_head():
    names = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    model = tiny_llama()
    add_fused_lm_head(model, outputs=names)
    ids = torch.randint(3, 384, (3, 20), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(20) < 8, -100)
    fused = model(input_ids=ids, labels=labels, fused_lm_head=True)
    fused.log_probs.sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    found = score_logits(model(input_ids=ids).logits, labels)
    found.log_probs.sum().backward()
    for name in names:
        torch.testing.assert_close(getattr(found, name).float(), getattr(fused, name).float(), rtol=EXACT, atol=EXACT)
    assert torch.equal(found.label_mask, fused.label_mask)
    for name, parameter in model.named_parameters():
        assert (parameter.grad - gradients[name]).norm() <= EXACT * gradients[name].norm(), name


def test_a_tested_type_is_not_compared(tmp_path, monkeypatch):
    """No forward more for the models that most people train."""
    monkeypatch.setattr(CheckedHead, "_compare", lambda head: pytest.fail("compared"))
    policy_logps(trainer_of(tiny_llama(), str(tmp_path)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {}),
        # It makes a float32 tensor of its own, and cannot multiply it by one of float64
        pytest.param("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, marks=pytest.mark.float32),
        ("xlm", {"emb_dim": 32, "n_layers": 2, "n_heads": 4}),
    ],
)
def test_a_model_that_sees_the_future_is_an_error(kind, options, tmp_path):
    torch.manual_seed(0)
    kept = {name: value for name, value in DECODER.items() if kind == "bert" or name in ("vocab_size", "pad_token_id")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **kept | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    with pytest.raises(ValueError, match=f"`{kind}` is not causal"):
        trainer_of(model, str(tmp_path))
