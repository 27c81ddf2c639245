"""At the first update of Eq. 3: KL 0, nothing clipped, log-probabilities of unpadded rows. TRL alone gives others."""

import pytest
import torch
import trl
from closeness import same
from datasets import Dataset
from peft import get_peft_model
from reinforced import (
    EOS_IDS,
    PROMPTS,
    changed_gpt2,
    in_memory,
    letters,
    llama_with_dropout,
    logged,
    options,
    recorded,
    trainer_of,
    unpadded_logps,
)
from tiny import lora_config, save_tiny, tiny_gpt2, tiny_llama, tiny_tokenizer

from trl_dpo_ext import RLOOPaperConfig


pytestmark = pytest.mark.usefixtures("float64")

MODELS = {"gpt2": changed_gpt2, "llama": llama_with_dropout}
CLIPPED = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


def gap(scored, model) -> float:
    """Largest difference to the log-probabilities of unpadded rows."""
    width = scored.logps.shape[1]
    found = [logps[mask] for logps, mask in zip(scored.logps, scored.mask.bool()[:, -width:], strict=True)]
    return max(float((a - b).abs().max()) for a, b in zip(found, unpadded_logps(model, scored), strict=True))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["rloo", "ppo"])
def test_the_first_update_is_on_policy(kind, model, tmp_path):
    policy = MODELS[model]()
    start = in_memory(policy)
    trainer = trainer_of(kind, policy, tmp_path)
    calls = recorded(trainer)
    trainer.train()
    old, reference, new = calls[:3]
    assert (old.mask[:, 0] == 0).any() and (old.mask[:, 0] == 1).any()  # padded and unpadded prompts
    assert old.model is new.model is trainer.model and reference.model is trainer.ref_model
    for scored in (old, reference, new):
        assert gap(scored, start) == same(0.0)
    first = logged(trainer)[0]
    assert {name: first[name] for name in ("kl", "kl_sequence", *CLIPPED)} == dict.fromkeys(
        ("kl", "kl_sequence", *CLIPPED), 0.0
    )
    # The reference is still the policy at the start, and the policy is not
    assert all(torch.equal(a, b) for a, b in zip(trainer.ref_model.parameters(), start.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["rloo", "ppo"])
def test_logged_terms_of_eq_3(kind, tmp_path):
    seen = []

    def reward(prompts, completions):
        seen.append(letters(prompts, completions))
        return seen[-1]

    # Two generations: PPO's passes over a generation are one here
    trainer = trainer_of(kind, changed_gpt2(), tmp_path, reward, num_iterations=1, beta=0.3)
    calls = recorded(trainer)
    trainer.train()
    old, reference = sorted(calls[-3:-1], key=lambda call: call.model is trainer.ref_model)
    width = old.logps.shape[1]
    lengths = old.mask[:, -width:].sum(1)
    kls = ((old.logps - reference.logps) * old.mask[:, -width:]).sum(1)
    log = logged(trainer)[1]
    assert kls.mean() != 0
    assert log["kl_sequence"] == same(kls.mean().item())
    assert log["kl"] == same((kls.sum() / lengths.sum()).item())
    assert log["reward"] == same(sum(seen[1]) / len(seen[1]))
    assert log["objective"] == same(log["reward"] - 0.3 * log["kl_sequence"])
    assert log["beta"] == 0.3
    finished = torch.isin(old.ids[:, -width:], torch.tensor(EOS_IDS)).any(1).double().mean().item()
    assert 0 < finished < 1
    assert log["completions/finished"] == same(finished)


def plain(model, folder, **changed):
    """TRL's own trainer, with the options of ours."""
    ours = RLOOPaperConfig(**options(folder))
    same_options = ("beta", "optim", "lr_scheduler_type", "max_grad_norm", "bf16", "gradient_checkpointing")
    return trl.RLOOTrainer(
        model,
        lambda prompts, completions, **kwargs: letters(prompts, completions),
        trl.RLOOConfig(
            **options(folder, disable_dropout=True) | {name: getattr(ours, name) for name in same_options} | changed
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4}),
        processing_class=tiny_tokenizer(),
    )


def loaded(model, folder):
    """The model as loaded from a folder, which TRL needs for the reference."""
    return type(model).from_pretrained(save_tiny(model, tiny_tokenizer(), folder), dtype=torch.float64)


def test_trl_alone_scores_padded_rows_at_other_positions(tmp_path):
    policy = loaded(changed_gpt2(), tmp_path / "sft")
    start = in_memory(policy)
    trainer = plain(policy, tmp_path)
    calls = recorded(trainer)
    trainer.train()
    assert logged(trainer)[0]["kl"] == 0.0  # both are wrong alike, so the KL does not show it
    assert gap(calls[0], start) > 0.1


@pytest.mark.parametrize(
    ("model", "disabled"), [(tiny_gpt2, False), (llama_with_dropout, True)], ids=["default", "disabled"]
)
def test_trl_alone_leaves_dropout(model, disabled, tmp_path):
    trainer = plain(loaded(model(), tmp_path / "sft"), tmp_path, disable_dropout=disabled)
    calls = recorded(trainer)
    trainer.train()
    assert logged(trainer)[0]["kl"] != same(0.0)
    assert gap(calls[2], in_memory(trainer.model)) > 1e-3


def test_trl_alone_loads_the_reference_again(tmp_path):
    policy = loaded(tiny_gpt2(), tmp_path / "sft")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    trainer = plain(policy, tmp_path)
    trainer.train()
    assert abs(logged(trainer)[0]["kl"]) > 1e-2


@pytest.mark.parametrize("kind", ["rloo", "ppo"])
def test_a_kl_at_the_start_is_a_warning(kind, tmp_path, caplog):
    for disabled in (True, False):
        caplog.clear()
        trainer_of(kind, changed_gpt2(), tmp_path, disable_dropout=disabled).train()
        found = [record.message for record in caplog.records if "before the first update" in record.message]
        assert len(found) == (not disabled)


ADAPTERS = {
    "new": lambda: (tiny_llama(), lora_config()),
    "trained": lambda: (get_peft_model(tiny_llama(), lora_config(init_lora_weights=False)), None),
    "trained, of embeddings": lambda: (
        get_peft_model(tiny_llama(), lora_config(init_lora_weights=False, target_modules=["q_proj", "embed_tokens"])),
        None,
    ),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_start_at_kl_0(adapter, tmp_path):
    policy, config = ADAPTERS[adapter]()
    trainer = trainer_of("rloo", policy, tmp_path, peft_config=config)
    trainer.train()
    first, second = logged(trainer)
    assert first["kl_sequence"] == 0.0 and first["clip_ratio/region_mean"] == 0.0
    assert second["kl_sequence"] != 0.0


def test_a_path_is_loaded_for_both(gpt2_folder, tmp_path):
    trainer = trainer_of("rloo", gpt2_folder, tmp_path)
    calls = recorded(trainer)
    trainer.train()
    assert logged(trainer)[0]["kl_sequence"] == 0.0
    assert gap(calls[1], tiny_gpt2()) == same(0.0)
