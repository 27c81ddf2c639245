"""Which policy is the reference, decided before TRL builds its trainer."""

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

# What the reference is, in the words of logs and messages
NONE = "none"
COLUMNS = "the data set's own log-probabilities"
EXPLICIT = "the model passed as `ref_model`"
ADAPTER_OFF = "adapter off"
ADAPTER_COPY = "frozen copy of the adapter"
COPY = "copy in memory"
SECOND_LOAD = "second load of the path"
START = "policy at the start"  # kept only as cached log-probabilities

# Initializations that move part of the base weights into the adapter: switching it off is then not the start
_BASE_CHANGING_INITS = ("pissa", "olora", "loftq", "corda", "lora_ga")

_REF_ADAPTER_MARK = "_trl_dpo_ext_made_ref_adapter"


class NoReference(nn.Module):
    """Stands where TRL wants a reference model and there is none: holds next to nothing, and is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PreTrainedConfig()
        self.nothing = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self) -> None:
        raise AssertionError("there is no reference policy to run")


def is_peft_model(model: nn.Module | str) -> bool:
    """Whether a model as passed to a trainer is a PEFT model (a path is not)."""
    return not isinstance(model, str) and is_peft_module(model)


def copy_in_memory(model: PreTrainedModel) -> PreTrainedModel:
    """
    Copies a model as it is in memory, frozen.

    TRL would load `config._name_or_path` again, which is another policy when the weights have changed since (measured
    with TRL 1.16: first loss 1.159 instead of 0.693).

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model to copy.

    Returns:
        [`~transformers.PreTrainedModel`]: The copy, with its class's own forward.

    Raises:
        ValueError: If DeepSpeed ZeRO-3 has partitioned the model.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ValueError(
            "The reference policy cannot be copied from a model that DeepSpeed ZeRO-3 has partitioned. Pass "
            "`ref_model=`, loaded from the same checkpoint, or pass the model as a path."
        )
    reference = copy.deepcopy(model)
    # A trainer that has already used `model` left its fused and autocast forward on the instance, bound to `model`
    if not hasattr(reference, "_hf_hook"):
        for name in ("forward", "_original_forward"):
            vars(reference).pop(name, None)
    return reference.requires_grad_(False).eval()


def check_adapter_start(model: nn.Module | str, peft_config: Any) -> None:
    """
    Checks that switching the adapter off gives the policy that training starts from.

    Args:
        model ([`~torch.nn.Module`] or `str`):
            Policy as passed to the trainer.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter that TRL is going to add.

    Raises:
        ValueError: If the adapter's initialization changes the base weights.
    """
    configs = [peft_config] if peft_config is not None else []
    if is_peft_model(model):
        configs += model.peft_config.values()
    for config in configs:
        init = getattr(config, "init_lora_weights", True)
        if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
            raise ValueError(
                f"`init_lora_weights={init!r}` moves part of the base weights into the adapter, so the model with the "
                "adapter switched off is not the policy that training starts from. Pass that policy as `ref_model=`, "
                "or use `init_lora_weights=True`."
            )


def check_adapter_names(model: nn.Module) -> None:
    """
    Checks that the adapter that is trained is the one that TRL copies as the reference, and can be copied.

    Raises:
        ValueError: If another adapter is active, or several are, or PEFT would change the model with the copy.
    """
    if any(getattr(config, "layer_replication", None) for config in model.peft_config.values()):
        raise ValueError(
            "The policy's adapter has `layer_replication`, and PEFT would replicate the layers again with the "
            "reference adapter that TRL adds. Pass the base model with the adapter's config as `peft_config=`, or the "
            "reference as `ref_model=`."
        )
    if model.active_adapters != ["default"]:
        names = " and ".join(map(repr, model.active_adapters)) or "none"
        raise ValueError(
            f"The policy's active adapter is {names}, and TRL makes the reference of the one named 'default'. Load "
            "the adapter under that name (`PeftModel.from_pretrained(base, folder, is_trainable=True)`, without "
            "`adapter_name`) and leave it alone active, or pass the reference as `ref_model=`."
        )


def copy_to_ref_adapter(model: nn.Module) -> None:
    """
    Copies the weights of the adapter `"default"` to `"ref"`, those included that TRL 1.16 leaves as they were drawn.

    TRL looks for `.default.` in names, and PEFT keeps many weights under names that end in the adapter's: LoRA of an
    embedding, trained tokens, IA3, VeRA, LoHa, LoKr, AdaLoRA, ...
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        places = name.split(".")
        copy_of = tensors.get(".".join("ref" if place == "default" else place for place in places))
        if "default" in places and copy_of is not None:
            copy_of.data.copy_(tensor.data)
            copy_of.requires_grad_(False)  # virtual tokens of prompt learning are left trainable


def forget_ref_adapter(model: nn.Module | str) -> None:
    """
    Removes the reference adapter that an earlier trainer left on a PEFT model, so that TRL can make a fresh one.

    Raises:
        ValueError: If the model has an adapter named `"ref"` that no trainer of this package made.
    """
    if is_peft_model(model) and "ref" in model.peft_config:
        if not vars(model).get(_REF_ADAPTER_MARK):
            raise ValueError(
                "The model has an adapter named `ref`, the name under which TRL keeps its reference adapter. Remove "
                "it with `model.delete_adapter('ref')`, or load it under another name."
            )
        model.delete_adapter("ref")


def mark_ref_adapter(model: nn.Module) -> None:
    """Records that the adapter named `"ref"` is a trainer's and not the user's."""
    if is_peft_model(model) and "ref" in model.peft_config:
        setattr(model, _REF_ADAPTER_MARK, True)
