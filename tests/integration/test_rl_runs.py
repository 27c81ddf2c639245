"""Runs of the trainers of Eq. 3: PPO's values and advantages, evaluation, and options on a command line."""

import pytest
import torch
from closeness import same
from datasets import Dataset
from reinforced import PROMPTS, TRAINERS, changed_gpt2, letters, options, trainer_of
from tiny import tiny_tokenizer
from transformers import HfArgumentParser

from trl_dpo_ext import PPOPaperConfig
from trl_dpo_ext.rl.value_model import completion_values, value_model_of


pytestmark = pytest.mark.usefixtures("float64")


def test_ppo_starts_with_values_of_0(tmp_path):
    # All values and the KL are 0, so the advantage of a token is its part of the reward of the completion
    trainer = trainer_of("ppo", changed_gpt2(), tmp_path, lam=0.5, whiten_advantages=False)
    batches = []
    generate = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(generate(inputs)) or batches[-1]
    trainer.train()
    batch = batches[0]
    mask = batch["completion_mask"]
    texts = tiny_tokenizer().batch_decode(
        [ids[keep] for ids, keep in zip(batch["completion_ids"], mask.bool(), strict=True)], skip_special_tokens=True
    )
    scores = torch.tensor(letters([], texts))
    until_end = mask.sum(1, keepdim=True) - mask.cumsum(1)
    expected = 0.5**until_end * scores[:, None] * mask
    torch.testing.assert_close(batch["advantages"], expected)
    torch.testing.assert_close(batch["returns"], expected)
    assert (batch["old_values"] == 0).all()
    first = trainer.state.log_history[0]
    assert first["value_loss"] == same((0.5 * (expected**2).sum() / mask.sum()).item())
    assert first["clip_ratio/region_mean"] == 0


def test_the_value_model_is_the_policy_in_memory(tmp_path):
    policy = changed_gpt2()
    value_model = trainer_of("ppo", policy, tmp_path).value_model
    for a, b in zip(value_model.transformer.parameters(), policy.transformer.parameters(), strict=True):
        assert torch.equal(a, b) and a is not b and a.requires_grad
    torch.nn.init.normal_(value_model.classifier.weight)
    rows = [tiny_tokenizer()(prompt)["input_ids"] + [5, 6, 7] for prompt in PROMPTS]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    padded = completion_values(value_model, ids, mask, num_tokens=3, batch_size=3)
    assert padded.abs().min() > 0
    for row, found in zip(rows, padded, strict=True):
        alone = value_model(torch.tensor([row])).logits[0, -4:-1, 0]  # before each of the last three tokens
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-10)


def test_a_value_model_needs_a_token_classifier():
    from transformers import CTRLConfig, CTRLLMHeadModel

    model = CTRLLMHeadModel(CTRLConfig(vocab_size=8, n_positions=8, n_embd=8, dff=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="CTRLConfig"):
        value_model_of(model)


@pytest.mark.parametrize("kind", TRAINERS)
def test_evaluation_logs_eq_3(kind, tmp_path):
    trainer = trainer_of(kind, changed_gpt2(), tmp_path, per_device_eval_batch_size=4)
    trainer.train()
    beta, generation = trainer.beta, trainer.last_generation
    metrics = trainer.evaluate(Dataset.from_dict({"prompt": PROMPTS}))
    logs = trainer.state.log_history[-1]
    assert logs["eval_loss"] == metrics["eval_loss"]
    assert logs["eval_objective"] == same(logs["eval_reward"] - beta * logs["eval_kl_sequence"])
    assert logs["eval_kl_sequence"] != 0
    assert trainer.last_generation is generation  # a KL target is held in training alone


@pytest.mark.parametrize("config", [config for _, config in TRAINERS.values()])
def test_options_of_a_command_line(config, tmp_path):
    words = ["--output_dir", str(tmp_path), "--per_device_train_batch_size", "8", "--beta", "0.3", "--bf16", "false"]
    (args,) = HfArgumentParser(config).parse_args_into_dataclasses([*words, "--use_cpu", "true"])
    assert (args.beta, args.bf16, args.optim) == (0.3, False, "rmsprop")
    if config is PPOPaperConfig:
        assert args.value_learning_rate == args.learning_rate


def test_the_value_model_has_its_own_learning_rate(tmp_path):
    trainer = trainer_of("ppo", changed_gpt2(), tmp_path, value_learning_rate=0.0, max_steps=2)
    start = [parameter.clone() for parameter in trainer.value_model.parameters()]
    weights = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(trainer.value_model.parameters(), start, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), weights, strict=True))
    assert all(parameter.grad is None for parameter in trainer.value_model.parameters())
    assert "value_loss" in trainer.state.log_history[0] and options(tmp_path)["learning_rate"] == 1e-3
