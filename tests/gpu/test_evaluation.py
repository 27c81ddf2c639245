"""Samples, KL and rewards on a GPU: in bf16, as near to float64 as bf16 allows, and twice the same."""

import json
from pathlib import Path

import pytest
import torch
from gpu.conftest import small_llama
from tiny import save_tiny, tiny_tokenizer
from transformers import LlamaForSequenceClassification

from trl_dpo_ext.cli import main
from trl_dpo_ext.evaluation import ClassifierReward, PolicyEvaluator, Sampler


PROMPTS = ["The film was", "A", "What is the weather like in Paris today?", "The cast"]
OPTIONS = {"num_samples": 16, "max_new_tokens": 12, "progress": False}


def policy() -> torch.nn.Module:
    model = small_llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    return model


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_samples_and_their_kl(device, precision):
    models = [model.to(device) for model in (small_llama(), policy())]
    evaluator = PolicyEvaluator(models[0], tiny_tokenizer(), mixed_precision=precision, **OPTIONS)
    found = evaluator.evaluate(models[1], PROMPTS)
    again = PolicyEvaluator(models[0], tiny_tokenizer(), mixed_precision=precision, **OPTIONS)
    assert again.evaluate(models[1], PROMPTS).completions == found.completions
    samples = Sampler(models[1], tiny_tokenizer(), mixed_precision=precision, **OPTIONS).sample(PROMPTS)
    exact = models[1].to("cpu", torch.float64)
    tolerance = 1e-3 if precision == "no" else 0.05  # nats a token: TF32 may be on, and bf16 has 8 bits
    for prompt, own in zip(PROMPTS, samples, strict=True):
        ids = tiny_tokenizer()(prompt)["input_ids"]
        for sample in own:
            with torch.no_grad():
                logits = exact(torch.tensor([[*ids, *sample.token_ids]])).logits[0, len(ids) - 1 : -1]
            logp = logits.log_softmax(1).gather(1, torch.tensor(sample.token_ids)[:, None]).sum().item()
            assert abs(sample.logp - logp) <= tolerance * len(sample.token_ids)
    assert (found.kl > 0).all() and (found.reference.kl == 0).all()
    assert abs(found.kl.mean() - found.kl_k1.mean()) <= 4 * found.kl_k1.std() / found.kl.size**0.5


def test_a_reward_model(device):
    config = small_llama().config
    config.num_labels, config.pad_token_id = 1, tiny_tokenizer().pad_token_id
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    texts = [" superb.", " dull, far too long.", " fine", "?"]
    expected = ClassifierReward(model.double(), tiny_tokenizer())(PROMPTS, texts)
    found = ClassifierReward(model.to(device, torch.float32), tiny_tokenizer())(PROMPTS, texts)
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-2)  # TF32 may be on


def test_the_command(device, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(small_llama(), tiny_tokenizer(), Path("sft"))
    save_tiny(policy(), tiny_tokenizer(), Path("policy"))
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    words = ["policy", "prompts.jsonl", "--reference", "sft", "--max_new_tokens", "8", "--device", device]
    assert main(["evaluate", *words, "--output", "out", "--dtype", "bfloat16"]) == 0
    entry = json.loads(Path("out/evaluation.json").read_text())["policies"]["policy"]
    assert entry["kl"] > 0
    settings = json.loads(Path("out/evaluation.samples/policy.jsonl.settings.json").read_text())
    assert settings["device"] == device
