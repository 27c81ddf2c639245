"""Weights that a folder lacks, or has too many of, are an error wherever a model is loaded, and nothing else is."""

import json
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import MODELS, preference_rows, save_tiny, tiny_gpt2, tiny_llama, tiny_processing_class, tiny_tokenizer

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer, ImplicitRewardModel
from trl_dpo_ext.cli import main
from trl_dpo_ext.models.loading import load_adapter, load_model


LOST = "model.layers.1.mlp.up_proj.weight"
EXTRA = "model.layers.2.mlp.up_proj.weight"


def change(folder: str, file: str = "model.safetensors", *, lose: str = "", add: str = "", **shapes) -> str:
    """Rewrites the weights of a folder."""
    path = Path(folder, file)
    weights = load_file(path)
    if lose:
        del weights[lose]
    if add:
        weights[add] = torch.ones(3, 3)
    for name, tensor in list(weights.items()):
        if name.endswith(tuple(shapes)):
            weights[name] = tensor[:2].clone()
    save_file(weights, path, metadata={"format": "pt"})
    return folder


@pytest.fixture
def policy(tmp_path) -> str:
    return save_tiny(tiny_llama(1), tiny_tokenizer(), tmp_path / "policy")


@pytest.fixture
def adapter(tmp_path, llama_folder) -> str:
    model = get_peft_model(load_model(llama_folder), LoraConfig(r=4, init_lora_weights=False))
    return save_tiny(model, tiny_tokenizer(), tmp_path / "adapter")


FAULTS = {
    "missing": ({"lose": LOST}, f"missing weights `{LOST}`"),
    "unexpected": ({"add": EXTRA}, f"unexpected weights `{EXTRA}`"),
    "shape": ({"lm_head.weight": 2}, r"`lm_head.weight` has the shape \(2, 32\).*\(384, 32\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("of", ["policy", "reference"])
def test_reward_models(policy, llama_folder, tmp_path, capsys, fault, of):
    changes, problem = FAULTS[fault]
    other = change(save_tiny(tiny_llama(0), tiny_tokenizer(), tmp_path / "other"), **changes)
    names = (other, llama_folder) if of == "policy" else (policy, other)
    with pytest.raises(ValueError, match=f"other.*{problem}"):
        ImplicitRewardModel.from_pretrained(names[0], reference=names[1], beta=0.1)
    preference_rows(2).to_json(tmp_path / "rows.jsonl")
    words = ["--reference", names[1], "--beta", "0.1", "--output", str(tmp_path / "out.jsonl")]
    assert main(["score", names[0], str(tmp_path / "rows.jsonl"), *words]) == 2
    assert "weights in" in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_trainers(policy, tmp_path, fault):
    changes, problem = FAULTS[fault]
    change(policy, **changes)
    args = DPOPaperConfig(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=f"policy.*{problem}"):
        DPOPaperTrainer(policy, args=args, train_dataset=preference_rows(4))


ADAPTER = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lose": ADAPTER}, "missing weights .*layers.1.self_attn.q_proj.lora_A"),
        (
            {"add": ADAPTER.replace("layers.1", "layers.7")},
            "unexpected weights .*layers.7.self_attn.q_proj.lora_A",
        ),
        ({"lora_A.weight": 2}, r"adapter_config.json.*size mismatch for .*lora_A"),
    ],
)
def test_adapters(adapter, changes, problem):
    ImplicitRewardModel.from_pretrained(adapter, beta=0.1)
    change(adapter, "adapter_model.safetensors", **changes)
    with pytest.raises(ValueError, match=f"adapter in .*{problem}"):
        ImplicitRewardModel.from_pretrained(adapter, beta=0.1)


def test_a_config_of_another_adapter(adapter):
    path = Path(adapter, "adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["q_proj"]}))
    with pytest.raises(ValueError, match=r"unexpected weights .*v_proj"):
        ImplicitRewardModel.from_pretrained(adapter, beta=0.1)


def test_a_damaged_file(policy, llama_folder):
    path = Path(policy, "model.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"The weights in .*policy cannot be read"):
        ImplicitRewardModel.from_pretrained(policy, reference=llama_folder, beta=0.1)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("size", ["5GB", "30KB"])
def test_whole_models_load(tmp_path, kind, size):
    """Tied, with experts, with images, in one file or with an index."""
    model = MODELS[kind](0)
    model.save_pretrained(tmp_path, max_shard_size=size)
    tiny_processing_class(kind).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "30KB")
    loaded = load_model(str(tmp_path))
    for (name, expected), found in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(expected, found), name


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, use_dora=True),
        LoraConfig(r=2, modules_to_save=["lm_head"]),
        LoraConfig(r=2, target_modules=["c_attn"], trainable_token_indices=[3, 4]),
        LoraConfig(r=2, bias="all"),
        IA3Config(),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
)
def test_whole_adapters_load(tmp_path, config):
    get_peft_model(tiny_gpt2(0), config).save_pretrained(tmp_path)
    assert load_adapter(tiny_gpt2(0), str(tmp_path)).active_adapter == "default"
