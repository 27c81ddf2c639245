"""
Film reviews, a small GPT-2 that is fine-tuned on them, and sampled and ranked completions of review prefixes.
"""

import itertools
import json
import random
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from trl_dpo_ext.evaluation import Sampler
from trl_dpo_ext.quickstart.sentiment_reward import SentimentReward


__all__ = [
    "MAX_NEW_TOKENS",
    "REVIEWS",
    "base_model",
    "cut_prefixes",
    "fine_tune",
    "language_modeling_loss",
    "load_reviews",
    "preference_pairs",
    "small_gpt2",
    "train_tokenizer",
    "true_reward",
]

REVIEWS = Path(__file__).with_name("reviews.jsonl")
_EOS, _PAD = "<|endoftext|>", "<|pad|>"
SPACE = "\u0120"  # byte-level BPE's character for a space
MIN_PREFIX_TOKENS, MAX_PREFIX_TOKENS = 2, 8
MAX_NEW_TOKENS = 40


def load_reviews() -> list[dict[str, str]]:
    """Returns the included reviews, each with its `text` and its `sentiment` ("good" or "bad")."""
    return [json.loads(line) for line in REVIEWS.read_text(encoding="utf-8").splitlines()]


def train_tokenizer(texts: list[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer trained on `texts`, with an end-of-sequence and a padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_EOS, _PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_EOS, pad_token=_PAD, clean_up_tokenization_spaces=False
    )


def small_gpt2(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Returns a GPT-2 with 2 layers and width 96 (about 430,000 parameters) and random weights."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_layer=2,
        n_embd=96,
        n_head=4,
        activation_function="gelu_pytorch_tanh",  # the same function as GPT-2's, but faster
        initializer_range=0.05,  # GPT-2's 0.02 is for a width of 768
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


def base_model() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The model before it is fine-tuned, for `recipes/frontier/synthetic.yaml`."""
    tokenizer = train_tokenizer([review["text"] for review in load_reviews()])
    return small_gpt2(tokenizer), tokenizer


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    *,
    num_steps: int,
    batch_size: int = 32,
    learning_rate: float = 5e-3,
) -> None:
    """Fine-tunes `model`, in place, on whole reviews with an end-of-sequence token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    scheduler = get_cosine_schedule_with_warmup(optimizer, num_steps // 20, num_steps)
    model.train()
    batches = _shuffled_batches(texts, batch_size)
    for _ in (progress := tqdm(range(num_steps), desc="fine-tuning", unit="step")):
        loss = language_modeling_loss(model, tokenizer, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f} nats per token")
    model.eval()


def _shuffled_batches(texts: list[str], batch_size: int) -> Iterator[list[str]]:
    """Yields batches of `texts` of about the same length (which saves padding) forever, in a new order every epoch."""
    while True:
        shuffled = random.sample(texts, len(texts))
        for start in range(0, len(shuffled), 8 * batch_size):
            pool = sorted(shuffled[start : start + 8 * batch_size], key=len)
            batches = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
            yield from random.sample(batches, len(batches))


def language_modeling_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Mean negative log-likelihood of the tokens of `texts`, with an end-of-sequence token each, in nats."""
    texts = [text + _EOS for text in texts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right").to(model.device)
    logits = model(**batch).logits[:, :-1]
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
    return cross_entropy(logits.transpose(1, 2), labels)


@cache
def _sentiment_reward() -> SentimentReward:
    return SentimentReward(load_reviews())


def true_reward(prompts: list[str], completions: list[str]) -> list[float]:
    """The reward by name: `--reward_function trl_dpo_ext.quickstart.sentiment_task:true_reward`."""
    return _sentiment_reward()(prompts, completions).tolist()


def cut_prefixes(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, *, num_prefixes: int, exclude: Collection[str] = ()
) -> list[str]:
    """
    Returns distinct beginnings of `texts`, 2 to 8 tokens long, in random order, except those in `exclude`.

    They end at the end of a word, so completions start with a space, and prompt and completion can be tokenized
    separately. May return fewer than `num_prefixes`.
    """
    cuts = []
    for ids in tokenizer(texts)["input_ids"]:
        tokens = tokenizer.convert_ids_to_tokens(ids)
        ends = range(MIN_PREFIX_TOKENS, min(MAX_PREFIX_TOKENS + 1, len(ids)))
        cuts += [ids[:end] for end in ends if tokens[end].startswith(SPACE)]
    random.shuffle(cuts)
    prefixes = dict.fromkeys(tokenizer.batch_decode(cuts))  # keeps the order
    return [prefix for prefix in prefixes if prefix not in exclude][:num_prefixes]


def preference_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    reward: SentimentReward,
    prefixes: list[str],
    *,
    seed: int,
    num_completions: int = 4,
) -> tuple[list[dict[str, str]], int]:
    """
    Samples completions of every prefix, ranks them by reward and pairs each with all those below it.

    Returns:
        Pairs with the columns `prompt`, `chosen` and `rejected`, and the number of dropped ones, because rewards are
        equal or a completion is empty.
    """
    sampler = Sampler(model, tokenizer, num_samples=num_completions, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    pairs, num_left_out = [], 0
    for prefix, samples in zip(prefixes, sampler.sample(prefixes), strict=True):
        completions = [sample.completion for sample in samples]
        rewards = reward([prefix] * num_completions, completions)
        ranked = sorted(range(num_completions), key=lambda i: -rewards[i])
        for better, worse in itertools.combinations(ranked, 2):
            if rewards[better] == rewards[worse] or not completions[better] or not completions[worse]:
                num_left_out += 1
            else:
                pairs.append({"prompt": prefix, "chosen": completions[better], "rejected": completions[worse]})
    return pairs, num_left_out
