"""Rewards behind one protocol: functions, classifiers, reward models as trained by TRL, and their errors."""

import math
import re
from pathlib import Path

import pytest
import torch
from closeness import same
from peft import LoraConfig
from tiny import preference_rows, save_tiny, tiny_gpt2, tiny_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from trl import RewardConfig, RewardTrainer

from trl_dpo_ext import ImplicitRewardModel
from trl_dpo_ext.evaluation import ClassifierReward
from trl_dpo_ext.evaluation.rewards.reward import name_of, rewards_of
from trl_dpo_ext.evaluation.rewards.reward_function import hash_function, load_function
from trl_dpo_ext.evaluation.rewards.reward_identity import identity_of_reward


PROMPTS = ["The film was", "A", "The cast was a"]
TEXTS = [" superb.", " dull, far too long, and slow.", " delight"]
WHERE = [f"sample 0 of prompt {i}" for i in range(3)]


# Functions


def test_a_function_gets_texts_or_messages():
    seen = []

    def length(prompts, completions):
        seen.append((prompts, completions))
        return torch.tensor([1.0, 2.0, 3.0])

    assert rewards_of(length, PROMPTS, TEXTS, WHERE) == [1.0, 2.0, 3.0]
    assert seen.pop() == (PROMPTS, TEXTS)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    rewards_of(length, messages, TEXTS, WHERE)
    assert seen.pop() == (messages, [[{"role": "assistant", "content": text}] for text in TEXTS])
    assert name_of(length) == "length"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([1.0, math.nan, 2.0], "The reward `f` is nan for sample 0 of prompt 1, ' dull, far too long, and slow.'"),
        ([1.0, 2.0, None], "The reward `f` is None for sample 0 of prompt 2, 'delight'"),
        ([math.inf, 2.0, 3.0], "The reward `f` is inf for sample 0 of prompt 0"),
        ([1.0, 2.0], "The reward `f` returned 2 values for 3 completions. Return one for each."),
        ([[1.0], [2.0], [3.0, 4.0]], "The reward `f` is [1.0] for sample 0 of prompt 0"),
    ],
)
def test_values_that_are_no_rewards(values, problem):
    def f(prompts, completions):
        return values

    with pytest.raises(ValueError, match=re.escape(problem.replace("' dull", "'dull"))):
        rewards_of(f, PROMPTS, TEXTS, WHERE)


def test_a_function_that_fails():
    def f(prompts, completions):
        return {}["score"]

    with pytest.raises(ValueError, match="The reward `f` failed on 3 completions: KeyError: 'score'"):
        rewards_of(f, PROMPTS, TEXTS, WHERE)


def test_functions_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "FACTOR = 2\ndef length(prompts, completions):\n    return [FACTOR * len(one) for one in completions]\n"
    Path("length_rewards.py").write_text(source)
    for name in ("length_rewards:length", "length_rewards.py:length", f"{tmp_path}/length_rewards.py:length"):
        assert load_function(name)(PROMPTS, TEXTS) == [16, 60, 16]
    before = hash_function(load_function("length_rewards.py:length"))
    assert before == hash_function(load_function("length_rewards.py:length"))
    Path("length_rewards.py").write_text(source.replace("2", "3"))
    assert before != hash_function(load_function("length_rewards.py:length"))
    for name, problem in {
        "length_rewards.py": "The function 'length_rewards.py' has no `:`. Write `module:function`",
        "length_rewards.py:lenght": "`lenght` does not exist in length_rewards.py. Did you mean `length`?",
        "length_rewards.py:FACTOR": "`FACTOR` is not a function in length_rewards.py",
        "none.py:length": "The file none.py with the function does not exist",
        "no_such_module:length": "There is no module `no_such_module`",
    }.items():
        with pytest.raises(ValueError, match=re.escape(problem)):
            load_function(name)
    Path("needs.py").write_text("import no_such_module\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):  # another module than the one asked for
        load_function("needs:length")


# Reward models of Eq. 2


def small_reward_model(pad_token_id: int, num_labels: int = 1) -> GPT2ForSequenceClassification:
    config = tiny_gpt2().config
    config.num_labels, config.pad_token_id = num_labels, pad_token_id
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(config)


@pytest.mark.parametrize("kind", ["plain", "chat"])
@pytest.mark.parametrize("pad", ["own", "eos"])
def test_a_reward_model_reads_what_its_training_read(pad, kind, tmp_path):
    """TRL appends EOS to text. With pad = EOS, transformers reads the token before it, in training and here."""
    tokenizer = tiny_tokenizer()
    if pad == "eos":
        tokenizer.pad_token = tokenizer.eos_token
    rows = preference_rows(6, kind)
    rows = rows.select_columns(["prompt", "chosen", "rejected"])
    trainer = RewardTrainer(
        model=small_reward_model(tokenizer.pad_token_id),
        args=RewardConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=3,
            report_to="none",
            save_strategy="no",
            learning_rate=1e-2,
            gradient_checkpointing=False,
            bf16=False,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "reward"))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[:, 0]

    reward = ClassifierReward.from_pretrained(tmp_path / "reward")
    assert name_of(reward) == "reward"
    found = reward(list(rows["prompt"]) * 2, [*rows["chosen"], *rows["rejected"]])
    assert found == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)  # float32, other padding
    assert len({round(value, 4) for value in found}) > 6
    one_by_one = ClassifierReward.from_pretrained(tmp_path / "reward", max_tokens_per_batch=1)
    assert one_by_one(list(rows["prompt"]), list(rows["chosen"])) == pytest.approx(found[:6], rel=1e-5, abs=1e-6)


def test_a_reward_model_as_an_adapter(tmp_path):
    tokenizer = tiny_tokenizer()
    base = save_tiny(small_reward_model(tokenizer.pad_token_id), tokenizer, tmp_path / "base")
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(base),
        args=RewardConfig(
            output_dir=str(tmp_path / "run"),
            max_steps=2,
            report_to="none",
            save_strategy="no",
            learning_rate=1e-1,
            gradient_checkpointing=False,
            bf16=False,
        ),
        train_dataset=preference_rows(6).select_columns(["prompt", "chosen", "rejected"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["c_attn"]),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    expected = ClassifierReward(trainer.model, tokenizer)(PROMPTS, TEXTS)
    assert ClassifierReward.from_pretrained(tmp_path / "adapter")(PROMPTS, TEXTS) == pytest.approx(expected, rel=1e-5)
    assert ClassifierReward.from_pretrained(base)(PROMPTS, TEXTS) != pytest.approx(expected, rel=1e-2)


# Classifiers


def classifier(labels: list[str], **options) -> RobertaForSequenceClassification:
    config = RobertaConfig(
        vocab_size=384,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=34,
        pad_token_id=0,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        initializer_range=0.5,
        **options,
    )
    torch.manual_seed(0)
    return RobertaForSequenceClassification(config).eval()


def test_the_probability_of_a_label():
    model, tokenizer = classifier(["NEGATIVE", "POSITIVE"]), tiny_tokenizer()
    positive = ClassifierReward(model, tokenizer, "POSITIVE")(PROMPTS, TEXTS)
    with torch.no_grad():
        logits = [
            model(torch.tensor([tokenizer(p + c)["input_ids"]])).logits[0] for p, c in zip(PROMPTS, TEXTS, strict=True)
        ]
    expected = [one.double().softmax(0)[1].item() for one in logits]
    assert positive == pytest.approx(expected, rel=1e-5)  # no EOS is appended
    negative = ClassifierReward(model, tokenizer, "0")(PROMPTS, TEXTS)
    assert [p + q for p, q in zip(positive, negative, strict=True)] == same([1.0] * 3)
    model.config.problem_type = "multi_label_classification"
    independent = ClassifierReward(model, tokenizer, "POSITIVE")(PROMPTS, TEXTS)
    assert independent == pytest.approx([one.double().sigmoid()[1].item() for one in logits], rel=1e-5)


def test_labels_that_are_missing_or_wrong():
    model, tokenizer = classifier(["NEGATIVE", "POSITIVE"]), tiny_tokenizer()
    with pytest.raises(ValueError, match="my is a classifier of 'NEGATIVE', 'POSITIVE'. Pass the label"):
        ClassifierReward(model, tokenizer, name="my")
    with pytest.raises(ValueError, match="has no label 'POSITVE', only .* Did you mean 'POSITIVE'?"):
        ClassifierReward(model, tokenizer, "POSITVE")
    with pytest.raises(ValueError, match="has one output, which is the reward. `label='x'` has no effect"):
        ClassifierReward(small_reward_model(0), tokenizer, "x")


def test_a_text_that_is_too_long():
    reward = ClassifierReward(classifier(["a", "b"]), tiny_tokenizer(), "a")
    with pytest.raises(ValueError, match="with its prompt, ' superb superb.* tokens, and the model supports 33"):
        reward(["The film was"], [" superb" * 40])


def test_a_model_without_a_head_is_refused(gpt2_folder):
    with pytest.raises(ValueError, match="missing weights `score.weight`"):
        ClassifierReward.from_pretrained(gpt2_folder)


def test_identities_change_with_what_they_depend_on():
    tokenizer, model = tiny_tokenizer(), classifier(["a", "b"])
    rewards = [
        *(ClassifierReward(model, tokenizer, label) for label in ("a", "b")),
        *(ImplicitRewardModel(tiny_gpt2(seed), tiny_gpt2(2), tokenizer, beta=0.1) for seed in (0, 1)),
        ImplicitRewardModel(tiny_gpt2(0), tiny_gpt2(2), tokenizer, beta=0.2),
    ]
    identities = list(map(identity_of_reward, rewards))
    assert len(set(identities)) == len(rewards)
    assert identities == list(map(identity_of_reward, rewards))
