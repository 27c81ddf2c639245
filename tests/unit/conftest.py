"""What the unit tests share: a trainer on given rows, and what it says."""

import re
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from integration.conftest import TINY
from tiny import tiny_llama, tiny_tokenizer

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer


GOOD = {"prompt": "Is it good?", "chosen": " Yes.", "rejected": " No."}
SAME = GOOD | {"rejected": " Yes."}


@pytest.fixture
def build(tmp_path):
    """Builds a trainer of a tiny model on the given rows."""

    def make(rows, options=None, *, model=None, tokenizer=None, **kwargs) -> DPOPaperTrainer:
        return DPOPaperTrainer(
            model or tiny_llama(),
            args=DPOPaperConfig(str(tmp_path), **TINY | {"max_steps": 2} | (options or {})),
            train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
            processing_class=tokenizer or tiny_tokenizer(),
            **kwargs,
        )

    return make


def stream(*rows: dict[str, Any]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


def says(*parts: str, error: type[Exception] = ValueError):
    """An error whose text holds `parts` in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts)))
