"""Kinds of reference policies, and the models and adapters that hold them."""

import copy
from typing import Any

import torch
from accelerate.utils import is_peft_model as is_peft_module
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


__all__ = [
    "ADAPTER_COPY",
    "ADAPTER_OFF",
    "COLUMNS",
    "COPY",
    "EXPLICIT",
    "NONE",
    "SECOND_LOAD",
    "START",
    "NoReference",
    "check_adapter_names",
    "check_adapter_start",
    "copy_in_memory",
    "copy_to_ref_adapter",
    "forget_ref_adapter",
    "is_peft_model",
    "mark_ref_adapter",
]

# Kinds of references, as named in logs and messages
NONE = "none"
COLUMNS = "the dataset's own log-probabilities"
EXPLICIT = "the model passed as `ref_model`"
ADAPTER_OFF = "adapter off"
ADAPTER_COPY = "frozen copy of the adapter"
COPY = "copy in memory"
SECOND_LOAD = "second load of the path"
START = "policy at the start"  # exists only as cached log-probabilities

# Initializations that move part of the base weights into the adapter, so the base is no longer the initial policy
_BASE_CHANGING_INITS = ("pissa", "olora", "loftq", "corda", "lora_ga")

_REF_ADAPTER_MARK = "_trl_dpo_ext_made_ref_adapter"


class NoReference(nn.Module):
    """Placeholder passed to TRL when there is no reference model. Never run."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PreTrainedConfig()
        self.nothing = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self) -> None:
        raise AssertionError("there is no reference policy to run")


def is_peft_model(model: nn.Module | str) -> bool:
    """Whether a model passed to a trainer is a PEFT model (a path is not)."""
    return not isinstance(model, str) and is_peft_module(model)


def copy_in_memory(model: PreTrainedModel) -> PreTrainedModel:
    """
    Copies a model in memory and freezes the copy.

    TRL would load `config._name_or_path` again, which gives another policy if the weights have changed since (measured
    with TRL 1.16: first loss 1.159 instead of 0.693).

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model to copy.

    Returns:
        [`~transformers.PreTrainedModel`]: Copy with the original forward of its class.

    Raises:
        ValueError: If the model is partitioned by DeepSpeed ZeRO-3.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ValueError(
            "The reference policy cannot be copied from a model that is partitioned by DeepSpeed ZeRO-3. Pass "
            "`ref_model=`, loaded from the same checkpoint, or pass the model as a path."
        )
    reference = copy.deepcopy(model)
    # An earlier trainer may have left its fused and autocast forward on the instance, bound to `model`
    if not hasattr(reference, "_hf_hook"):
        for name in ("forward", "_original_forward"):
            vars(reference).pop(name, None)
    return reference.requires_grad_(False).eval()


def check_adapter_start(model: nn.Module | str, peft_config: Any) -> None:
    """
    Checks that the policy without its adapter is the policy that training starts from.

    Args:
        model ([`~torch.nn.Module`] or `str`):
            Policy as passed to the trainer.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter that TRL will add.

    Raises:
        ValueError: If the initialization of the adapter changes the base weights.
    """
    configs = [peft_config] if peft_config is not None else []
    if is_peft_model(model):
        configs += model.peft_config.values()
    for config in configs:
        init = getattr(config, "init_lora_weights", True)
        if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
            raise ValueError(
                f"`init_lora_weights={init!r}` moves part of the base weights into the adapter, so the model without "
                "the adapter is not the policy that training starts from. Pass that policy as `ref_model=`, or use "
                "`init_lora_weights=True`."
            )


def check_adapter_names(model: nn.Module) -> None:
    """
    Checks that the trained adapter is the one that TRL copies as the reference, and that it can be copied.

    Raises:
        ValueError: If the active adapter is not the only one named `"default"`, or a copy would change the model.
    """
    if any(getattr(config, "layer_replication", None) for config in model.peft_config.values()):
        raise ValueError(
            "The policy's adapter has `layer_replication`, and PEFT would replicate the layers a second time for the "
            "reference adapter that TRL adds. Pass the base model and the adapter's config as `peft_config=`, or pass "
            "the reference as `ref_model=`."
        )
    if model.active_adapters != ["default"]:
        names = " and ".join(map(repr, model.active_adapters)) or "none"
        raise ValueError(
            f"The policy's active adapter is {names}, but TRL copies the adapter named 'default' as the reference. "
            "Load the adapter under that name (`PeftModel.from_pretrained(base, folder, is_trainable=True)`, without "
            "`adapter_name`) and activate no other, or pass the reference as `ref_model=`."
        )


def copy_to_ref_adapter(model: nn.Module) -> None:
    """
    Copies all weights of the adapter `"default"` to `"ref"`, including those that TRL 1.16 leaves at random values.

    TRL looks for `.default.` in parameter names, but PEFT has many names that end in the adapter's name: LoRA of an
    embedding, trained tokens, IA3, VeRA, LoHa, LoKr, AdaLoRA, ...
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        places = name.split(".")
        copy_of = tensors.get(".".join("ref" if place == "default" else place for place in places))
        if "default" in places and copy_of is not None:
            copy_of.data.copy_(tensor.data)
            copy_of.requires_grad_(False)  # PEFT leaves virtual tokens of prompt learning trainable


def forget_ref_adapter(model: nn.Module | str) -> None:
    """
    Removes the reference adapter of an earlier trainer from a PEFT model, so that TRL can add a new one.

    Raises:
        ValueError: If the adapter named `"ref"` was not added by a trainer of this package.
    """
    if is_peft_model(model) and "ref" in model.peft_config:
        if not vars(model).get(_REF_ADAPTER_MARK):
            raise ValueError(
                "The model has an adapter named `ref`, which is TRL's name for its reference adapter. Remove it with "
                "`model.delete_adapter('ref')`, or load it under another name."
            )
        model.delete_adapter("ref")


def mark_ref_adapter(model: nn.Module) -> None:
    """Records that the adapter named `"ref"` was added by a trainer."""
    if is_peft_model(model) and "ref" in model.peft_config:
        setattr(model, _REF_ADAPTER_MARK, True)
