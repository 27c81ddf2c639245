"""One decoder layer of Llama 3.2 1B: its time against that of its matrix products alone, compiled and not."""

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from benchmarks.gpu_check.layouts import Lengths, layout_of
from benchmarks.gpu_check.machine import HALF, Machine
from benchmarks.gpu_check.sections import Found
from trl_dpo_ext.shared_prompt.attention import SDPA
from trl_dpo_ext.shared_prompt.layout import Layout
from trl_dpo_ext.shared_prompt.masks import window_mark
from trl_dpo_ext.shared_prompt.segments import segments_of


__all__ = ["measure_layer"]

_WEIGHTS = {"float32 weights, autocast": torch.float32, "bf16 weights": HALF}


def measure_layer(machine: Machine, found: Found) -> None:
    """Puts milliseconds, TFLOP/s, and the number of compiled graphs into `found`, of bf16 and of autocast weights."""
    layout = layout_of([(160, [79, 79])] * 32 if not machine.dry else [(16, [8, 8])] * 2, machine.device)
    for label, dtype in _WEIGHTS.items():
        found[label] = {}
        _measure(machine, layout, dtype, found[label])
    found["rounded"] = _rounding(machine)
    found["graphs"] = _graphs(machine)
    if not machine.dry:  # a minute on a CPU
        for label, dtype in _WEIGHTS.items():
            _measure_compiled(machine, layout, dtype, found[label])


def _measure(machine: Machine, layout: Layout, dtype: torch.dtype, found: Found) -> None:
    layer = _layer(machine).to(dtype)
    linears = _linears(layer)
    tokens = found["tokens"] = layout.tokens.numel()
    found["flops"] = 6 * sum(linear.weight.numel() for linear in linears) * tokens
    found["eager"] = machine.milliseconds(_step(machine, layer, layout, dtype), repeats=8)
    found["products"] = machine.milliseconds(_products(linears, tokens), repeats=8)
    for name in ("eager", "products"):
        found[f"{name}_tflops"] = found["flops"] / found[name] / 1e9


def _measure_compiled(machine: Machine, layout: Layout, dtype: torch.dtype, found: Found) -> None:
    layer = _layer(machine).to(dtype)
    layer.compile(dynamic=True)
    step = _step(machine, layer, layout, dtype)
    found["compile_s"] = machine.seconds(step)
    found["compiled"] = machine.milliseconds(step, repeats=8)
    found["compiled_tflops"] = found["flops"] / found["compiled"] / 1e9


def _linears(layer: nn.Module) -> list[nn.Linear]:
    return [module for module in layer.modules() if isinstance(module, nn.Linear)]


def _layer(machine: Machine) -> LlamaDecoderLayer:
    config = LlamaConfig(
        hidden_size=machine.size(2048, 64),
        intermediate_size=machine.size(8192, 128),
        num_attention_heads=machine.size(32, 4),
        num_key_value_heads=machine.size(8, 2),
        head_dim=machine.size(64, 16),
    )
    config._attn_implementation = SDPA["varlen"]
    return LlamaDecoderLayer(config, 0).to(machine.device).train()


def _step(machine: Machine, layer: LlamaDecoderLayer, layout: Layout, dtype: torch.dtype) -> Callable[[], Any]:
    config = layer.self_attn.config
    rotary = LlamaRotaryEmbedding(config).to(machine.device)
    hidden = torch.randn(1, layout.tokens.numel(), config.hidden_size, device=machine.device, dtype=dtype)
    hidden.requires_grad_()
    arguments = {
        "position_embeddings": rotary(hidden, layout.positions),
        "attention_mask": window_mark(layout, None),
        "plan": segments_of(layout),
    }

    def step() -> None:
        with torch.autocast(machine.device.type, HALF, enabled=dtype is torch.float32):
            output = layer(hidden, **arguments)
        output.float().sum().backward()
        layer.zero_grad(set_to_none=True)
        hidden.grad = None

    return step


def _products(linears: list[nn.Linear], tokens: int) -> Callable[[], Any]:
    # As many operations as forward and backward take
    pairs = [
        (torch.randn(tokens, linear.in_features, device=linear.weight.device, dtype=HALF), linear.weight.to(HALF))
        for linear in linears
    ]

    def step() -> None:
        for states, weight in pairs:
            for _ in range(3):
                F.linear(states, weight)

    return step


def _graphs(machine: Machine) -> int:
    # One if a compiled layer takes ragged layouts of any length
    layer = _layer(machine)
    layer.compile(dynamic=True, backend="aot_eager")
    counters.clear()
    rng = random.Random(0)
    for _ in range(machine.size(8, 3)):
        lengths: Lengths = [
            (rng.randint(5, 40), [rng.randint(2, 20) for _ in range(2)]) for _ in range(rng.choice((3, 4, 6)))
        ]
        _step(machine, layer, layout_of(lengths, machine.device), torch.float32)()
    return counters["stats"]["unique_graphs"]


def _rounding(machine: Machine) -> dict[str, float]:
    # An odd number of tokens, and the next multiple of 128
    linears = _linears(_layer(machine))
    odd = machine.size(10_113, 65)
    return {
        "odd_ms": machine.milliseconds(_products(linears, odd), repeats=8),
        "multiple_ms": machine.milliseconds(_products(linears, -(-odd // 128) * 128), repeats=8),
    }
