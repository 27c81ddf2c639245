"""Loading and saving a policy with its reference, with the weights and dtypes of training."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from huggingface_hub import snapshot_download
from peft import PeftConfig

from trl_dpo_ext.models.loading import load_adapter, load_model
from trl_dpo_ext.reference.policy import ADAPTER_COPY, ADAPTER_OFF, NONE
from trl_dpo_ext.reference.weights_hash import hash_weights
from trl_dpo_ext.trainers.checkpoints.checkpoint_files import newest_whole_here
from trl_dpo_ext.trainers.checkpoints.saved_state import (
    adapter_parameters,
    describe_source,
    describe_weights,
    read_state,
    write_state,
)
from trl_dpo_ext.trainers.options.adapter_base import check_base, read_adapter_config


__all__ = ["LoadedPolicy", "load_policy", "save_policy", "to_folder"]

# Subfolders of a policy: its reference model (this package), and the frozen copy of a trained adapter (PEFT)
_REFERENCE, _REF_ADAPTER = "reference", "ref"

_NEVER_READ = ["*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "checkpoint-*", "runs/*"]


@dataclass
class LoadedPolicy:
    """
    A policy loaded from a folder, with its reference.

    Args:
        policy (`PreTrainedModel` or `PeftModel`):
            Policy.
        reference (`PreTrainedModel` or `PeftModel`, *optional*):
            Reference. `None` if the reference is inside the policy, or there is none.
        reference_free (`bool`):
            Whether the policy was trained without a reference.
        state (`dict`):
            Contents of the `trl_dpo_ext.json` that the trainer saved, or empty.
    """

    policy: Any
    reference: Any
    reference_free: bool
    state: dict[str, Any]


def to_folder(name: str | Path, revision: str | None = None, token: str | None = None) -> str:
    """Returns a local folder with the files of a folder or hub repository (without pickled weights)."""
    if os.path.isdir(name):
        return str(name)
    return snapshot_download(str(name), revision=revision, token=token, ignore_patterns=_NEVER_READ)


def load_policy(
    folder: str,
    *,
    reference: Any = None,
    reference_free: bool | None = None,
    dtype: str | torch.dtype | None = None,
    device: torch.device,
    quantization_config: Any = None,
    check_reference: bool = True,
) -> LoadedPolicy:
    """
    Loads a policy and its reference with the weights of training.

    Args:
        folder (`str`):
            Folder of a model or an adapter, saved by a trainer of this package or another one.
        reference (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Reference. Default: the frozen copy of the adapter, the subfolder `reference`, the policy without its
            adapter, or the recorded model, whichever exists.
        reference_free (`bool`, *optional*):
            Whether to load no reference. Default: as in training.
        dtype (`str` or `torch.dtype`, *optional*):
            Dtype of the weights, applied after the reference has been checked. Default: as in training.
        device (`torch.device`):
            Device of the models.
        quantization_config ([`~transformers.utils.quantization_config.QuantizationConfigMixin`], *optional*):
            Quantization of an adapter's base model. Default: as in training.
        check_reference (`bool`, *optional*, defaults to `True`):
            Whether to compare the hash of the reference with the recorded one.

    Returns:
        [`LoadedPolicy`]

    Raises:
        ValueError: If there is no reference, or it is not the one that the policy was trained with.
    """
    state = read_state(folder)
    recorded = state.get("reference", {})
    if reference is not None and reference_free:
        raise ValueError("`reference` has no effect with `reference_free=True`. Leave one of them out.")
    if reference_free is None:
        reference_free = reference is None and recorded.get("kind") == NONE
    quantization = quantization_config or state.get("quantization_config")
    if dtype is not None and quantization is not None:
        raise ValueError(f"`dtype={dtype}` has no effect on quantized weights. Leave it out.")
    is_adapter = os.path.isfile(os.path.join(folder, "adapter_config.json"))
    if not is_adapter and not os.path.isfile(os.path.join(folder, "config.json")):
        checkpoint = newest_whole_here(folder)
        hint = f"Pass {checkpoint}" if checkpoint else "Save one there with `trainer.save_model()`"
        raise ValueError(f"{folder} contains neither a model nor an adapter. {hint}.")
    in_policy = reference is None and _is_in_policy(folder, is_adapter, recorded)

    def load(dtype: Any) -> tuple[Any, Any]:
        if is_adapter:
            policy = _load_adapter(folder, state, dtype, device, quantization)
        else:
            policy = _load_model(folder, dtype or state.get("dtype", "auto"), device, quantization)
        if reference_free or in_policy:
            return policy, None
        return policy, _load_reference(reference, folder, recorded, dtype, device)

    if check_reference and recorded.get("hash") and not reference_free:
        policy, model = load(None)
        found = hash_weights(policy) if model is None else hash_weights(model, with_adapters=True)
        _check_hash(found, recorded, folder, reference)
        if dtype is not None:  # loaded again: casting a model would also cast its buffers
            del policy, model
            policy, model = load(dtype)
    else:
        policy, model = load(dtype)
    return LoadedPolicy(policy, model, reference_free, state)


def save_policy(
    folder: str | Path, policy: Any, reference: Any, state: dict[str, Any], save_reference: bool | None = None
) -> None:
    """
    Saves a policy, its reference and `state`, so that [`load_policy`] reproduces the log-probabilities.

    Args:
        folder (`str` or `Path`):
            Folder to write to.
        policy (`PreTrainedModel` or `PeftModel`):
            Policy.
        reference (`PreTrainedModel` or `PeftModel`, *optional*):
            Reference. `None` if the reference is inside the policy, or there is none.
        state (`dict`):
            Contents of `trl_dpo_ext.json`.
        save_reference (`bool`, *optional*):
            Whether to save the weights of the reference. Default: if it is a separate model. `False` records only
            the folder or hub name that it was loaded from.

    Raises:
        ValueError: If a model that is not saved has no such name.
    """
    source: dict[str, str] = {}
    if is_peft_model(policy):
        source = describe_source(policy)
        if not source:
            raise ValueError(
                "The adapter's base model was built in memory, so its location is unknown. Save it with "
                "`policy.get_base_model()` before the adapter is added, and load it from there."
            )
        if policy.active_adapter != "default":
            raise ValueError(
                f"The policy's adapter is named {policy.active_adapter!r}, but PEFT loads only 'default' from a "
                "folder. Load the adapter under the name 'default'."
            )
    if reference is not None:
        source = {} if is_peft_model(reference) else describe_source(reference)
        if save_reference is None:
            save_reference = True
        if not save_reference and not source:
            raise ValueError(
                "`save_reference=False` needs a folder or hub name of the reference, but it is an adapter or was "
                "built in memory. Leave `save_reference` out."
            )
    elif save_reference:
        raise ValueError("`save_reference=True` has no effect, because the reference is not a separate model.")

    Path(folder).mkdir(parents=True, exist_ok=True)
    policy.save_pretrained(folder)
    if reference is not None and save_reference:
        reference.save_pretrained(Path(folder, _REFERENCE))
        source = {}
    described: dict[str, Any] = {} if state["reference"]["kind"] == NONE else dict(source)
    if reference is not None:
        described |= describe_weights(reference)
    if state["reference"]["kind"] != NONE:
        described["hash"] = hash_weights(policy) if reference is None else hash_weights(reference, with_adapters=True)
    write_state(folder, state | describe_weights(policy) | {"reference": state["reference"] | described})


def _is_in_policy(folder: str, is_adapter: bool, recorded: dict[str, Any]) -> bool:
    """Whether the reference is the frozen copy of the adapter, or the policy without its adapter."""
    kind = recorded.get("kind", ADAPTER_OFF)
    frozen_copy = os.path.isfile(os.path.join(folder, _REF_ADAPTER, "adapter_config.json"))
    return is_adapter and (frozen_copy or kind.startswith(ADAPTER_OFF))


def _load_model(
    name: str, dtype: Any, device: torch.device, quantization: Any = None, revision: str | None = None
) -> Any:
    device_map = None if device.type in ("cpu", "mps") else {"": device}
    if dtype == "float64":  # TRL does not accept this name
        dtype = torch.float64
    arguments: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "trust_remote_code": False}
    if quantization is not None:
        from transformers.quantizers import AutoQuantizationConfig

        if isinstance(quantization, dict):
            quantization = AutoQuantizationConfig.from_dict(quantization)
        arguments["quantization_config"] = quantization
    if revision is not None:
        arguments["revision"] = revision
    model: Any = load_model(name, **arguments)
    return model if quantization is not None else model.to(device)


def _load_adapter(folder: str, state: dict[str, Any], dtype: Any, device: torch.device, quantization: Any) -> Any:
    recorded = state.get("reference", {})
    read_adapter_config(folder)
    config = PeftConfig.from_pretrained(folder)
    name, revision = config.base_model_name_or_path, config.revision
    is_base = recorded.get("kind", "").startswith((ADAPTER_OFF, ADAPTER_COPY))
    if is_base and os.path.isdir(recorded.get("model", "")) and not (name and os.path.isdir(name)):
        name, revision = recorded["model"], None  # a relative path is relative to another folder
    check_base(folder, name)
    base = _load_model(name, dtype or state.get("dtype", "float32"), device, quantization, revision)
    model = load_adapter(base, folder)
    if os.path.isfile(os.path.join(folder, _REF_ADAPTER, "adapter_config.json")):
        load_adapter(model, os.path.join(folder, _REF_ADAPTER), "ref")
    # PEFT loads adapters in float32, whatever dtype they were trained in (TRL: bfloat16 on quantized weights)
    trained_in = getattr(torch, state.get("adapter_dtype", "float32"))
    for parameter in adapter_parameters(model):
        parameter.data = parameter.data.to(trained_in)
    return model.to(device) if quantization is None else model


def _load_reference(given: Any, folder: str, recorded: dict[str, Any], dtype: Any, device: torch.device) -> Any:
    if given is not None and not isinstance(given, (str, Path)):
        return given
    inside = os.path.join(folder, _REFERENCE)
    if given is not None:
        name, revision = str(given), None
    elif os.path.isdir(inside):
        name, revision = inside, None
    elif recorded.get("synced"):
        raise ValueError(
            f"The reference of {folder} changed during training (`sync_ref_model=True`) and was not saved. Pass "
            "`reference=`, or save with `ImplicitRewardModel.from_trainer(trainer).save_pretrained(folder)` after "
            "training."
        )
    elif "model" in recorded:
        name, revision = recorded["model"], recorded.get("revision")
        if os.path.isabs(name) and not os.path.isdir(name):
            raise ValueError(
                f"The reference of {folder} was loaded from {name}, which does not exist here. Pass `reference=`, the "
                "model that training started from."
            )
    else:
        raise ValueError(
            f"{folder} does not record its reference. Pass `reference=`, the model that training started from, or "
            "`reference_free=True` for rewards beta log pi(y|x)."
        )
    dtype = dtype or recorded.get("dtype", "float32")
    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        return _load_adapter(name, read_state(name), dtype, device, None)
    return _load_model(name, dtype, device, recorded.get("quantization_config"), revision)


def _check_hash(found: str | None, recorded: dict[str, Any], folder: str, given: Any) -> None:
    if found == recorded["hash"]:
        return
    what = "The model passed as `reference`" if given is not None else f"The reference ({recorded['kind']})"
    if given is None and "model" in recorded:
        what += f", loaded from {recorded['model']},"
    raise ValueError(
        f"{what} is not the one that {folder} was trained with: its weights have the hash {found}, but the recorded "
        f"hash is {recorded['hash']}. The model, its weights, dtype (recorded: {recorded.get('dtype', 'unknown')}) or "
        "quantization differ. Pass the model that training started from as `reference=`, or `check_reference=False` "
        "to skip this check."
    )
