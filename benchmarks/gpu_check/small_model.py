"""Whether a model in bf16 gives the numbers of separate rows on every path: log-probabilities, gradients, steps."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from benchmarks.gpu_check.flash_package import flash_package, name_flash_attention
from benchmarks.gpu_check.machine import HALF, Machine
from benchmarks.gpu_check.sections import Found
from trl_dpo_ext.batches import Batch
from trl_dpo_ext.data.rankings.collator import DataCollatorForRanking
from trl_dpo_ext.logps import completion_logps
from trl_dpo_ext.shared_prompt.forward import GroupedForward, LayoutOptions


__all__ = ["check_small_model"]

# A path may err this many times as much as separate rows in bf16 do, against float32, and by these amounts besides:
# nats of a log-probability, one minus a cosine, nats of a loss
_TIMES = 3
_BESIDES = {"logps": 1e-2, "gradients": 1e-4, "losses": 1e-3}

_STEPS, _LEARNING_RATE, _BETA = 20, 1e-3, 0.1

# Tokens of prompts and of their completions
_LENGTHS = [(30, [25, 12, 2]), (7, [40, 8]), (64, [33, 20, 5, 50])]


def check_small_model(machine: Machine, found: Found) -> None:
    """Puts for each path its errors, and those of separate rows in bf16, into `found`, and `passed`."""
    batch = _batch(machine)
    truth = _run(machine, batch, path=None, half=False)
    rows = found["separate rows in bf16"] = _errors(_run(machine, batch, path=None, half=True), truth)
    found["bf16 reference"] = _bf16_weights_are_bit_equal(machine, batch)
    found["bad"] = []
    # flex compiles, which may take too long, and has no backward on a CPU
    for path in ("varlen", "dense", "flash", *(() if machine.dry else ("flex",))):
        with flash_package() if path == "flash" else nullcontext():
            errors = found[path] = _errors(_run(machine, batch, path, half=True), truth)
        found["bad"] += [
            f"{path}: {name}" for name, error in errors.items() if not error <= _TIMES * rows[name] + _BESIDES[name]
        ]
        found["passed"] = "flash" in found and not found["bad"]


def _build(machine: Machine) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=machine.size(512, 64),
        intermediate_size=machine.size(1024, 96),
        num_hidden_layers=machine.size(4, 2),
        num_attention_heads=machine.size(8, 4),
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model.to(machine.device)


def _batch(machine: Machine) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(3, 1000, (length,), generator=generator).tolist()

    rows = [{"prompt_ids": draw(prompt), "completion_ids": [draw(n) for n in lengths]} for prompt, lengths in _LENGTHS]
    batch = DataCollatorForRanking(pad_token_id=0)(rows)
    return {name: value.to(machine.device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _run(machine: Machine, batch: dict[str, Any], path: str | None, half: bool) -> dict[str, Tensor]:
    # On separate rows without a path. Gradients are of the first step
    model, read = _build(machine), Batch.of(batch)
    inputs = dict(read.rows)
    if path is not None:
        model = name_flash_attention(model) if path == "flash" else model
        if path == "flex":
            model.set_attn_implementation("flex_attention")
        GroupedForward(model, LayoutOptions(share_prompt=True, attention_path=path), machine.device, HALF)
        inputs |= {"prompt_groups": read.groups}
    assert read.groups is not None
    better, worse = (torch.tensor([rows[place] for rows in read.groups.members]) for place in (0, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    found: dict[str, Tensor] = {}
    losses = []
    for _ in range(machine.size(_STEPS, 3)):
        with torch.autocast(machine.device.type, HALF, enabled=half):
            logps = completion_logps(model, inputs).logps
        loss = -F.logsigmoid(_BETA * (logps[better] - logps[worse])).mean()
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        for name, values in (("logps", logps), ("gradients", gradients)):
            found.setdefault(name, values.detach())
        losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    return found | {"losses": torch.stack(losses)}


def _errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    return {
        "logps": (found["logps"] - truth["logps"]).abs().mean().item(),
        "gradients": 1 - F.cosine_similarity(found["gradients"], truth["gradients"], dim=0).item(),
        "losses": (found["losses"] - truth["losses"]).abs().max().item(),
    }


def _bf16_weights_are_bit_equal(machine: Machine, batch: dict[str, Any]) -> bool:
    # Autocast casts the weights of linear layers in every forward: a frozen reference may hold them so

    def logps(model: PreTrainedModel) -> Tensor:
        with torch.autocast(machine.device.type, HALF), torch.no_grad():
            return completion_logps(model, dict(Batch.of(batch).rows)).logps

    model = _build(machine)
    before = logps(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(HALF)
    return torch.equal(before, logps(model))
