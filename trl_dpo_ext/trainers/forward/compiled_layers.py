"""`torch_compile` in these trainers: the layers of a model are compiled, and not the whole of it."""

from accelerate.utils.other import is_repeated_blocks
from torch import nn
from transformers import TrainingArguments


__all__ = ["compile_layers"]


def compile_layers(model: nn.Module, args: TrainingArguments) -> None:
    """
    Compiles every decoder layer of a model in place, once for batches of any shape.

    What is around the layers lays a batch out anew at every step, and would be compiled anew.

    Args:
        model ([`~torch.nn.Module`]):
            Model.
        args ([`~transformers.TrainingArguments`]):
            Options: `torch_compile_backend` and `torch_compile_mode`.
    """
    for layer in _layers(model):
        layer.compile(dynamic=True, backend=args.torch_compile_backend, mode=args.torch_compile_mode)


def _layers(module: nn.Module) -> list[nn.Module]:
    # The outermost lists of equal blocks; a layer may have one of experts
    if is_repeated_blocks(module):
        return list(module.children())
    return [layer for child in module.children() for layer in _layers(child)]
