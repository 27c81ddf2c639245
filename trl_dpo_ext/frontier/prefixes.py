"""Prompts that are beginnings of texts, as in the paper's sentiment experiment."""

import random
from collections.abc import Sequence
from typing import Any


__all__ = ["beginnings"]


def beginnings(texts: Sequence[str], tokenizer: Any, length: tuple[int, int], seed: int) -> list[str]:
    """
    Returns distinct beginnings of texts, in random order.

    They end where a word ends, so that a completion starts with a space, and both can be tokenized apart.

    Args:
        texts (`Sequence[str]`):
            Texts.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        length (`tuple[int, int]`):
            Smallest and largest number of tokens.
        seed (`int`):
            Seed of the order.
    """
    found: dict[str, None] = {}
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for end in range(length[0], min(length[1] + 1, len(ids))):
            prefix = tokenizer.decode(ids[:end])
            if text.startswith(prefix) and text[len(prefix) :].startswith(" ") and prefix.strip():
                found[prefix] = None
    prefixes = sorted(found)
    random.Random(seed).shuffle(prefixes)
    return prefixes
