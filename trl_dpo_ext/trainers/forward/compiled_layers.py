"""`torch_compile` for models that share prompts: their layers are compiled, and not the whole of them."""

from typing import Any

from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from accelerate.utils.other import is_repeated_blocks
from torch import nn
from transformers import TrainingArguments


__all__ = ["compile_layers"]


def compile_layers(model: nn.Module, args: TrainingArguments, accelerator: Accelerator) -> None:
    """
    Compiles every decoder layer of a model in place, for sequences of any length, and tells accelerate not to compile
    the model.

    What is around the layers lays a batch out anew at every step; a layer is compiled once for all of them.

    Args:
        model ([`~torch.nn.Module`]):
            Model.
        args ([`~transformers.TrainingArguments`]):
            Options: `torch_compile_backend` and `torch_compile_mode`.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator that has not prepared the model yet.
    """
    options: dict[str, Any] = {"backend": args.torch_compile_backend, "mode": args.torch_compile_mode}
    for layer in _layers(model):
        layer.compile(dynamic=True, **options)
    accelerator.state.dynamo_plugin.backend = DynamoBackend.NO


def _layers(module: nn.Module) -> list[nn.Module]:
    # The outermost lists of equal blocks; a layer may have one of experts
    if is_repeated_blocks(module):
        return list(module.children())
    return [layer for child in module.children() for layer in _layers(child)]
