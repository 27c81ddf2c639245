"""Identity of a reference policy: a hash of the weights that its log-probabilities depend on."""

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
    Hashes the weights of a model that belong to the reference policy.

    For a policy that is a PEFT model, these are the base weights and those of an adapter named `"ref"`, which is TRL's
    frozen copy of a trained adapter. The policy's own adapter is not part of the reference. Parameters have the names
    of the base model, so a base model with a new adapter has the same hash as without.

    Args:
        model ([`~torch.nn.Module`]):
            Model, whole or partitioned by DeepSpeed ZeRO-3, but not sharded by FSDP.
        with_adapters (`bool`, *optional*, defaults to `False`):
            Whether to hash all weights, because the model is the reference itself.

    Returns:
        `str`: 128-bit hash in hexadecimal. All processes return the hash of the main process.
    """
    is_partitioned = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    # With FSDP's memory-efficient loading only the main process has weights; with ZeRO-3 all processes have parts
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
    """Returns a pattern that matches the names of weights of the policy's adapters."""
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
