"""
Tests of what runs on a GPU. Each runs on a CPU as well, with FlashAttention imitated, so that it is known to work.

    python -m pytest -m gpu tests/gpu
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from flash_on_cpu import flash_attn_on_cpu, flash_on_cpu, use_flash_attention_2
from integration.conftest import TINY
from tiny import preference_rows, ranking_rows, tiny_llama, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import trl_dpo_ext
from benchmarks.gpu_check.flash_package import flash_package
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer


_GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")]
)


@pytest.fixture(params=["cpu", _GPU])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def small_llama() -> LlamaForCausalLM:
    """`tiny_llama` with heads of 16, which flex attention needs on a GPU."""
    torch.manual_seed(0)
    values = tiny_llama().config.to_dict() | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    return LlamaForCausalLM(LlamaConfig(**values))


@contextmanager
def attention(device: str, path: str) -> Iterator[None]:
    """Has the kernels of a path, imitated on a CPU; on a GPU torch's own stand for the package flash-attn."""
    if device == "cpu":
        kernels: Any = flash_attn_on_cpu() if path == "flash" else flash_on_cpu()
    else:
        kernels = flash_package() if path == "flash" and find_spec("flash_attn") is None else nullcontext()
    with kernels:
        yield


@pytest.fixture
def build(device: str, tmp_path: Path) -> Callable[..., BaseDPOTrainer]:
    """Builds a trainer of a method on a path, inside of [`attention`], in bf16 and for three updates unless told."""

    def make(method: str, path: str, model: Any = None, **options: Any) -> BaseDPOTrainer:
        model = small_llama() if model is None else model
        if path == "flash":
            use_flash_attention_2(model)
        elif path == "flex":
            model.set_attn_implementation("flex_attention")
        arguments = {name: options.pop(name) for name in ("peft_config", "quantization_config") if name in options}
        given = TINY | {"use_cpu": device == "cpu", "bf16": True, "max_steps": 3, "attention_path": path} | options
        return getattr(trl_dpo_ext, f"{method}Trainer")(
            model,
            args=getattr(trl_dpo_ext, f"{method}Config")(str(tmp_path / path), **given),
            train_dataset=ranking_rows(12, [2, 5, 3, 4]) if method == "RankingDPO" else preference_rows(12),
            processing_class=tiny_tokenizer(),
            **arguments,
        )

    return make
