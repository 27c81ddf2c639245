"""
No step of a training mixes tensors of the host with those of an accelerator, or waits for it, tried without one.

Weights and batches are on a device whose tensors have shapes and no values, and every operation checks devices as on a
GPU: torch's `FakeTensorMode`, on the device type `lazy`, which no backend claims. To read one of them, as `.item()`,
`nonzero` and a boolean index do, is an error. What is computed on the host, the layout of a batch, is computed with
values.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import accelerate
import pytest
import torch
import trl
from integration.conftest import TINY
from peft import LoraConfig
from tiny import preference_rows, ranking_rows, tiny_gpt2, tiny_llama, tiny_mistral, tiny_tokenizer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM, PreTrainedModel

import trl_dpo_ext
from trl_dpo_ext.batches import with_groups
from trl_dpo_ext.shared_prompt import forward
from trl_dpo_ext.shared_prompt.paths import choose_path


DEVICE = "lazy"
GPU = torch.device("cuda")


class Accelerator(TorchDispatchMode):
    """Puts on the device what is made there or moved there."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == DEVICE:
            with self.fake:
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        with self.fake:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)

    def put_model(self, model: nn.Module) -> None:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    there = self.put(parameter)
                    module._parameters[name] = nn.Parameter(there, requires_grad=parameter.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = self.put(buffer)


@contextmanager
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerator]:
    asked = torch.is_autocast_enabled
    # Autocast does not know the device type
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cuda": kind != DEVICE and asked(kind))
    with Accelerator() as mode:
        yield mode


def with_attention(implementation: str) -> LlamaForCausalLM:
    model = tiny_llama()
    model.set_attn_implementation(implementation)
    return model


def with_one_layer(model: PreTrainedModel) -> PreTrainedModel:
    """A layer is as the next, and every operation on the device takes long."""
    [layers] = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    del layers[1:]
    model.config.num_hidden_layers = 1
    return model


# Trainer, options, model
CASES: dict[str, tuple[str, dict[str, Any], Callable[[], PreTrainedModel]]] = {
    "pairs": ("DPOPaper", {}, tiny_llama),
    "eager": ("DPOPaper", {}, lambda: with_attention("eager")),
    "separate": ("DPOPaper", {"share_prompt": False}, tiny_llama),
    "row by row": ("DPOPaper", {"padding_free": False}, tiny_llama),
    "in parts": ("DPOPaper", {"completions_per_forward": 1}, tiny_llama),
    "windows": ("DPOPaper", {}, tiny_mistral),
    "positions": ("DPOPaper", {}, tiny_gpt2),
    "smoothed": ("DPOPaper", {"label_smoothing": 0.1}, tiny_llama),
    "rankings": ("RankingDPO", {}, tiny_llama),
    "rankings in parts": ("RankingDPO", {"completions_per_forward": 2}, tiny_llama),
    "unlikelihood": ("Unlikelihood", {"unlikelihood_form": "token", "reference_free": False}, tiny_llama),
    "preferred-ft": ("PreferredFT", {"reference_free": False, "loss_reduction": "token_mean"}, tiny_llama),
}
# With another attention, or a row for each completion
DENSE_ONLY = ("eager", "separate")


def as_on_a_gpu(path: str) -> Callable[..., tuple[str | None, str]]:
    """The path of a GPU, which is another than a CPU's; `"varlen"` where the model takes it."""

    def choose(model: PreTrainedModel, device: torch.device, *options: Any, **others: Any) -> tuple[str | None, str]:
        found = choose_path(model, GPU, *options, **others)
        return (path, "") if found[0] == "dense" and model.config._attn_implementation == "sdpa" else found

    return choose


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "adapter", "path"),
    [
        (name, adapter, path)
        for name, adapter in [*((name, False) for name in CASES), ("pairs", True), ("rankings in parts", True)]
        for path in ("dense", "varlen")
        if path == "dense" or name not in DENSE_ONLY
    ],
)
def test_loss_and_metrics(name: str, adapter: bool, path: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, options, make = CASES[name]
    monkeypatch.setattr(forward, "choose_path", as_on_a_gpu(path))
    if options.get("share_prompt") is not False:
        # As on a GPU, where TRL's head picks the tokens that have a label, which waits for it
        monkeypatch.setattr(trl.trainer.utils, "_use_triton", lambda device: True)
    # Its comparison of two ways to run the model reads values
    monkeypatch.setattr(forward.GroupedForward, "_check", lambda grouped: None)
    model = with_one_layer(make())
    trainer = getattr(trl_dpo_ext, f"{method}Trainer")(
        model,
        args=getattr(trl_dpo_ext, f"{method}Config")(str(tmp_path), **TINY | options),
        train_dataset=ranking_rows(3, [2, 3, 4]) if method == "RankingDPO" else preference_rows(3),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None,
    )
    inputs = with_groups(trainer.data_collator([trainer.train_dataset[i] for i in range(3)]), trainer.largest)
    # What is read from the device: at an update's end, whether its losses are finite
    trainer.accelerator.gradient_state._set_sync_gradients(False)
    monkeypatch.setattr(accelerate.Accelerator, "device", torch.device(DEVICE))
    with accelerator(monkeypatch) as mode:
        for part in (trainer.model, trainer.ref_model):
            if part is not None:
                mode.put_model(part)
        there = {key: mode.put(value) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, there)
        loss.backward()
        assert loss.device.type == DEVICE
        trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        assert {parameter.grad.device.type for parameter in trained if parameter.grad is not None} == {DEVICE}


def test_a_mixture_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with accelerator(monkeypatch) as mode:
        there = mode.put(torch.ones(3))
        with pytest.raises(RuntimeError, match=r"two (different )?devices,? lazy"):
            there + torch.ones(3)
