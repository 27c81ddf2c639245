"""Models of five tokens, whose completions can all be enumerated."""

import itertools
import math

import torch
from closeness import drawn_in_float32
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_dpo_ext.sampling.options import SamplingOptions


WORDS = ["<eos>", "a", "b", "c", "d"]
LENGTH = 3


def few_tokens(kind: str, seed: int = 0) -> tuple[torch.nn.Module, PreTrainedTokenizerFast]:
    """A model of five tokens, with dropout, and its tokenizer."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    ids = {"vocab_size": len(WORDS), "bos_token_id": None, "eos_token_id": 0, "initializer_range": 0.5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "gpt2":
            config = GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=16, **ids)  # dropout 0.1
            return drawn_in_float32(lambda: GPT2LMHeadModel(config)), tokenizer
        config = LlamaConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_dropout=0.1,
            max_position_embeddings=16,
            **ids,
        )
        return drawn_in_float32(lambda: LlamaForCausalLM(config)), tokenizer


def enumerated(model, prompt_ids: list[int], options: SamplingOptions) -> dict[tuple[int, ...], float]:
    """Log-probability of every completion of up to `LENGTH` tokens, in batches without padding."""
    model.eval()
    found = {}
    for length in range(1, LENGTH + 1):
        every = itertools.product(range(len(WORDS)), repeat=length)
        completions = [ids for ids in every if 0 not in ids[:-1] and (length == LENGTH or ids[-1] == 0)]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt_ids, *ids] for ids in completions])).logits
        for ids, rows in zip(completions, logits[:, len(prompt_ids) - 1 : -1].double(), strict=True):
            logps = [_warped(row, options).get(token, -math.inf) for row, token in zip(rows, ids, strict=True)]
            if sum(logps) > -math.inf:
                found[ids] = sum(logps)
    return found


def _warped(row: torch.Tensor, options: SamplingOptions) -> dict[int, float]:
    """Log-probabilities after temperature of the tokens that top-k and top-p keep."""
    if options.temperature == 0:
        return {int(row.argmax()): 0.0}
    row = row / options.temperature
    if not options.top_k and options.top_p == 1:
        return dict(enumerate(row.log_softmax(0).tolist()))
    order = row.argsort(descending=True).tolist()[: options.top_k or None]
    p = row[order].softmax(0)
    order = [i for i, before in zip(order, (p.cumsum(0) - p).tolist(), strict=True) if before < options.top_p]
    return dict(zip(order, row[order].log_softmax(0).tolist(), strict=True))
