"""The models that are trained, with random weights, and a tokenizer that only has to exist."""

from typing import Any

import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast


__all__ = ["MODELS", "build_model", "build_tokenizer", "lora"]

_SPECIAL_IDS: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
_SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}

MODELS: dict[str, dict[str, Any]] = {
    "llama-tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "llama-58m": {
        "vocab_size": 32_000,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    },
    # The shape of Llama 3.2 1B
    "llama-1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
}


def build_model(name: str, device: str) -> PreTrainedModel:
    """A Llama of `MODELS` in float32, with the same random weights on every call; it has no dropout."""
    config = LlamaConfig(**MODELS[name], max_position_embeddings=32_768, **_SPECIAL_IDS)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that the trainers can be built with. The rows that are timed are token ids already."""
    vocab = {token: place for place, token in enumerate(_SPECIAL_TOKENS.values())}
    tokenizer = Tokenizer(models.WordLevel(vocab | {"good": 3, "bad": 4}, unk_token=_SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL_TOKENS)


def lora() -> LoraConfig:
    """Rank 16 on all linear layers."""
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
