"""Options and rewards that the trainers of Eq. 3 refuse, with the fix, and the rule of the KL target."""

import math
import types

import pytest
import torch
import trl
from closeness import same
from datasets import Dataset
from peft import PromptTuningConfig
from reinforced import TRAINERS, letters, options, trainer_of
from tiny import lora_config, tiny_gpt2, tiny_processor, tiny_tokenizer
from transformers import GPT2Config, GPT2ForSequenceClassification

from trl_dpo_ext import KLTargetCallback, PPOPaperConfig, RLOOPaperConfig, RLOOPaperTrainer
from trl_dpo_ext.evaluation import ClassifierReward
from trl_dpo_ext.rl.rl_trainer import Generation


@pytest.mark.parametrize("config", [RLOOPaperConfig, PPOPaperConfig])
def test_defaults_of_the_paper(config, tmp_path):
    args = config(str(tmp_path), per_device_train_batch_size=8, use_cpu=True)
    assert args.beta == 0.1 and args.learning_rate == 1e-6
    assert args.optim == "rmsprop" and args.lr_scheduler_type == "constant_with_warmup" and args.warmup_steps == 150
    assert args.max_grad_norm == 10.0 and args.bf16 is False and args.disable_dropout is True
    assert (args.temperature, args.top_p, args.top_k) == (1.0, 1.0, 0)


@pytest.mark.parametrize("config", [RLOOPaperConfig, PPOPaperConfig])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"beta": 0.0}, "`beta=0.0` does not constrain the KL"),
        ({"beta": math.nan}, "`beta=nan` does not constrain the KL"),
        ({"temperature": 0.7}, "`temperature=0.7` samples from another distribution .* set it to 1.0"),
        ({"top_k": 50}, "`top_k=50` samples from another distribution .* set it to 0"),
        ({"generation_kwargs": {"top_p": 0.9}}, "`top_p=0.9` samples from another distribution"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` adds noise to the policy"),
        ({"sync_ref_model": True}, "`sync_ref_model=True` changes the reference"),
    ],
)
def test_options_that_are_not_eq_3(config, changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(**options(tmp_path, **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gamma": 1.5}, "`gamma=1.5` must be between 0 and 1"),
        ({"lam": -0.1}, "`lam=-0.1` must be between 0 and 1"),
        ({"value_clip_range": 0.0}, "`value_clip_range=0.0` must be above 0"),
        ({"loss_type": "grpo"}, "`loss_type='grpo'` changes GRPO's advantages or loss"),
        ({"scale_rewards": "batch"}, "`scale_rewards='batch'` changes GRPO's advantages or loss"),
        ({"importance_sampling_level": "sequence"}, "`importance_sampling_level='sequence'` changes GRPO's"),
    ],
)
def test_options_that_are_not_ppo(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        PPOPaperConfig(**options(tmp_path, **changed))


def classifier():
    config = GPT2Config(vocab_size=384, n_embd=8, n_layer=1, n_head=1, n_positions=64, num_labels=2)
    return GPT2ForSequenceClassification(config)


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("siebert/sentiment", r"`reward_funcs` has 'siebert/sentiment', .* `ClassifierReward.from_pretrained\("),
        (
            classifier,
            r"`reward_funcs` has a `GPT2ForSequenceClassification`, .* `ClassifierReward\(model, tokenizer, ",
        ),
        ([letters, "x"], r"`reward_funcs` has 'x'"),
        ([], "`reward_funcs` is empty"),
        (3.0, "`reward_funcs` has a `float`"),
    ],
)
def test_rewards_are_functions(kind, reward, message, tmp_path):
    reward = reward() if reward is classifier else reward
    with pytest.raises(TypeError, match=message):
        trainer_of(kind, tiny_gpt2(), tmp_path, reward)


def raises(prompts, completions):
    raise KeyError("score")


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (raises, "The reward `raises` failed on 8 completions: KeyError: 'score'"),
        (lambda p, c: [1.0] * 7, "The reward `<lambda>` returned 7 values for 8 completions"),
        (lambda p, c: [1.0] * 7 + [math.nan], "The reward `<lambda>` is nan for completion 8 of update 1"),
        (lambda p, c: [1.0] * 7 + [None], "The reward `<lambda>` is None for completion 8 of update 1"),
    ],
    ids=["raises", "number", "nan", "none"],
)
def test_a_reward_that_fails_gives_one_error(kind, reward, message, tmp_path):
    trainer = trainer_of(kind, tiny_gpt2(), tmp_path, reward)
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_rewards_get_completions_without_eos_as_in_evaluation(tmp_path):
    seen = []

    def keep(prompts, completions):
        seen.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    messages = [[{"role": "user", "content": text}] for text in ("Hello", "How do I cook rice?")]
    model = tiny_gpt2()
    model.generation_config.eos_token_id = list(range(2, 200))
    for prompts in (["Hello", "How do I"], messages):
        RLOOPaperTrainer(
            model,
            keep,
            RLOOPaperConfig(**options(tmp_path, max_steps=1)),
            train_dataset=Dataset.from_dict({"prompt": prompts * 4, "label": [1] * 8}),
            processing_class=tiny_tokenizer(),
        ).train()
    plain, chat = seen[:8], seen[8:]
    assert {prompt for prompt, _ in plain} == {"Hello", "How do I"}
    assert all(isinstance(text, str) and tiny_tokenizer().eos_token not in text for _, text in plain)
    assert all(prompt in messages for prompt, _ in chat)
    assert all([message["role"] for message in completion] == ["assistant"] for _, completion in chat)


def test_a_reward_model_scores_completions_with_eos(tmp_path):
    tokenizer, texts = tiny_tokenizer(), []
    assert tokenizer.pad_token != tokenizer.eos_token  # else the EOS token is padding to a reward model
    config = GPT2Config(vocab_size=384, n_embd=8, n_layer=1, n_head=1, n_positions=64, num_labels=1)
    config.pad_token_id = tokenizer.pad_token_id
    classifier_reward = ClassifierReward(GPT2ForSequenceClassification(config), tokenizer)

    def reward(prompts, completions):
        texts.extend(prompt + completion for prompt, completion in zip(prompts, completions, strict=True))
        return classifier_reward(prompts, completions)

    trainer = trainer_of("rloo", tiny_gpt2(), tmp_path, reward, max_steps=1)
    trainer.train()
    scores = []
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        scores.append(classifier_reward.model(ids).logits.item())
    assert trainer.state.log_history[0]["reward"] == pytest.approx(sum(scores) / 8, abs=1e-5)


def test_arguments_that_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`args` is a `RLOOConfig`, .* Pass a `RLOOPaperConfig`"):
        RLOOPaperTrainer(tiny_gpt2(), letters, trl.RLOOConfig(**options(tmp_path)))
    with pytest.raises(ValueError, match="`PPOPaperTrainer` trains all weights of a value model"):
        trainer_of("ppo", tiny_gpt2(), tmp_path, peft_config=lora_config(target_modules=["c_attn"]))
    with pytest.raises(ValueError, match="The adapter learns virtual tokens"):
        prompt_tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        trainer_of("rloo", tiny_gpt2(), tmp_path, peft_config=prompt_tuning)
    with pytest.raises(ValueError, match="`processing_class` is a processor"):
        RLOOPaperTrainer(tiny_gpt2(), letters, RLOOPaperConfig(**options(tmp_path)), processing_class=tiny_processor())


# The KL target


def test_the_rule_of_ziegler_et_al(tmp_path):
    trainer = trainer_of("rloo", tiny_gpt2(), tmp_path, beta=0.1)
    callback = KLTargetCallback(trainer, target=2.0, horizon=640)
    expected = 0.1
    callback.on_step_end(None, None, None)
    assert trainer.beta == expected  # nothing has been generated
    for kl, error in ((9.0, 0.2), (2.2, 0.1), (2.0, 0.0), (1.9, -0.05), (-3.0, -0.2)):
        trainer.last_generation = Generation(kl, 64)
        callback.on_step_end(None, None, None)
        expected *= 1 + error * 0.1
        assert trainer.beta == same(expected)
        callback.on_step_end(None, None, None)  # a later update on the same generation
        assert trainer.beta == same(expected)


def test_targets_that_are_refused(tmp_path):
    trainer = trainer_of("rloo", tiny_gpt2(), tmp_path)
    with pytest.raises(ValueError, match="`target=0.0` must be above 0"):
        KLTargetCallback(trainer, target=0.0)
    with pytest.raises(ValueError, match="`horizon=7` is less than the 8 completions of a generation"):
        KLTargetCallback(trainer, target=1.0, horizon=7)
    with pytest.raises(ValueError, match="`SimpleNamespace` does not log a sequence KL"):
        KLTargetCallback(types.SimpleNamespace(), target=1.0)
