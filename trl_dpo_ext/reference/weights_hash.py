"""The identity of a reference policy: a hash of the weights behind its log-probabilities, and of nothing else."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, is_peft_model
from torch import nn


__all__ = ["adapter_pattern", "hash_weights"]


def hash_weights(model: nn.Module, *, with_adapters: bool = False) -> str:
    """
    Hashes a model's weights as the reference policy sees them.

    Of a policy that is a PEFT model only the base weights count, and those of an adapter named `"ref"` if there is one
    (TRL's frozen copy of a trained adapter): the policy's own adapter is not part of the reference. Names are those of
    the base model, so a base model under a fresh adapter has the hash of the base model alone.

    Args:
        model ([`~torch.nn.Module`]):
            Model, whole or partitioned by DeepSpeed ZeRO-3, and not sharded by FSDP.
        with_adapters (`bool`, *optional*, defaults to `False`):
            Hash all weights: the model is the reference itself, and not a policy that holds it.

    Returns:
        `str`: 128-bit hash in hexadecimal, of the main process's weights on every process.
    """
    is_partitioned = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    # With FSDP's memory-efficient loading the other processes hold no weights yet; ZeRO-3's parts come from all
    hashes = PartialState().is_main_process or is_partitioned
    result = [_hash(model, with_adapters) if hashes else None]
    if PartialState().num_processes > 1:
        broadcast_object_list(result, from_process=0)
    return result[0]


def _hash(model: nn.Module, with_adapters: bool) -> str:
    of_policy = re.compile(r"(?!)") if with_adapters else adapter_pattern(model)  # matches nothing
    state = model.state_dict(keep_vars=True)
    names = {_base_name(name): tensor for name, tensor in state.items() if not of_policy.search(name)}
    digest = xxhash.xxh3_128()
    for name in sorted(names):
        with _whole(names[name]) as tensor:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # Viewed as bytes: numpy has no bfloat16
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def _whole(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if not hasattr(tensor, "ds_id"):
        yield tensor
        return
    from deepspeed import zero

    with zero.GatheredParameters([tensor]):  # one at a time
        yield tensor


def adapter_pattern(model: nn.Module) -> re.Pattern[str]:
    """Matches names of weights that belong to the policy's adapters, which follow one of PEFT's own containers."""
    if not is_peft_model(model):
        return re.compile(r"(?!)")  # nothing
    prefix = getattr(model.base_model, "prefix", "")  # "lora_", "ia3_", ...
    containers = [rf"{re.escape(prefix)}\w*"] if prefix else []
    containers += ["modules_to_save", "prompt_encoder", r"token_adapter\.trainable_tokens_\w+"]
    adapters = "|".join(re.escape(name) for name in model.peft_config if name != "ref")
    return re.compile(rf"(^|\.)({'|'.join(containers)})\.({adapters})(\.|$)")


def _base_name(name: str) -> str:
    name = re.sub(r"^base_model\.model\.", "", name)
    return re.sub(r"\.(base_layer|original_module)\b", "", name)
