"""`torch_compile` with shared prompts: decoder layers are compiled once, for layouts of any shape."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DynamoBackend
from flash_on_cpu import flash_on_cpu
from integration.conftest import TINY, assert_same_run, updates
from tiny import preference_rows, tiny_llama, tiny_moe, tiny_tokenizer
from torch._dynamo.utils import counters

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer
from trl_dpo_ext.trainers.forward.compiled_layers import compile_layers
from trl_dpo_ext.trainers.logs.samples import SampleLog


pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch.compile needs vector instructions on a CPU"
    ),
]


def train(folder, **options):
    args = DPOPaperConfig(str(folder / "out"), **TINY | {"max_steps": 4, "learning_rate": 1e-4} | options)
    trainer = DPOPaperTrainer(
        tiny_llama(),
        args=args,
        train_dataset=preference_rows(16),
        eval_dataset=preference_rows(3, start=40),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    return trainer


def test_one_graph_for_all_layouts(tmp_path, monkeypatch):
    """
    Four updates of four shapes, policy and reference: one graph of a layer with gradient and one without. Evaluation
    needs one more, and samples none: each layer would be compiled again for its part of the cache.
    """
    options = {"eval_strategy": "steps", "eval_steps": 4, "max_length": 48, "log_samples": 2}
    separate = train(tmp_path, share_prompt=False, **options)
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    original = SampleLog.for_logs

    def counted(samples, logs):
        before = counters["stats"]["unique_graphs"]
        found = original(samples, logs)
        graphs.append((len(found), before, counters["stats"]["unique_graphs"]))  # samples, graphs before and after
        return found

    monkeypatch.setattr(SampleLog, "for_logs", counted)
    with flash_on_cpu() as calls:
        compiled = train(
            tmp_path, attention_path="varlen", torch_compile=True, torch_compile_backend="aot_eager", **options
        )
    assert str(compiled.runner) == "computed once (FlashAttention of torch, packed)"
    assert calls["backward"] == 4 * 2
    assert len(updates(compiled)) == 4
    assert graphs == [(0, 2, 2)] * 4 + [(2, 3, 3), (0, 3, 3)]  # updates, evaluation, end
    assert not counters["graph_break"]
    assert compiled.accelerator.state.dynamo_plugin.backend == DynamoBackend.NO
    assert_same_run(compiled, separate)


def test_masks_are_not_compiled(tmp_path):
    args = DPOPaperConfig(str(tmp_path), **TINY | {"torch_compile": True, "torch_compile_backend": "aot_eager"})
    trainer = DPOPaperTrainer(
        tiny_llama(), args=args, train_dataset=preference_rows(8), processing_class=tiny_tokenizer()
    )
    assert "`torch_compile` would compile the layout of every batch anew" in str(trainer.runner)


def test_the_outermost_blocks_are_layers():
    """Experts are blocks within a layer."""
    compiled = []
    model = tiny_moe()
    for name, module in model.named_modules():
        module.compile = lambda name=name, **options: compiled.append((name, options["dynamic"]))
    compile_layers(model, SimpleNamespace(torch_compile_backend="inductor", torch_compile_mode=None))
    assert compiled == [(f"model.layers.{i}", True) for i in range(model.config.num_hidden_layers)]
