"""Which models can run on a layout of distinct tokens."""

import inspect
from dataclasses import fields
from typing import Any

from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedModel


__all__ = [
    "TESTED",
    "hands_on_arguments",
    "is_ordinary",
    "is_tested",
    "noise_in",
    "whole_rows_for_adapter",
    "whole_rows_for_model",
    "windows_of",
]

# Model types whose log-probabilities and gradients are tested against separate rows. Where a config or a layer is not
# ordinary one short group is compared before they run this way; of other types one as long as rows may be
TESTED = frozenset(
    {
        "apertus",
        "cohere",
        "cohere2",
        "ernie4_5",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "granite",
        "granitemoe",
        "helium",
        "llama",
        "mistral",
        "mixtral",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)

# Models that give other numbers without an error, some only on long rows
_INEXACT = {
    "bloom": "its ALiBi counts places in the row, not positions",
    "gpt_neo": "its local layers count places in the row, not positions",
    "mpt": "its ALiBi counts places in the row, not positions",
}

_ATTENTION_TYPES = {"full_attention", "sliding_attention"}

# Options that transformers adds to a config of these types, also when it reads one from a file, and those that do not
# change what a token sees of another
_NO_OPTIONS = {"head_dim", "ignore_keys_at_rope_validation", "model_type", "num_key_value_heads", "num_local_experts"}
_NO_OPTIONS |= {"output_router_logits", "quantization_config", "tie_word_embeddings", "use_cache"}

# Packages whose layers read token by token, or are the tested ones
_ORDINARY = ("torch.", "transformers.", "peft.tuners.lora.", "peft.utils.", "bitsandbytes.")


def is_tested(model: PreTrainedModel) -> bool:
    """Whether log-probabilities of this type of model are tested."""
    return model.config.get_text_config().model_type in TESTED


def is_ordinary(model: PreTrainedModel) -> bool:
    """
    Whether a model is as the tested ones of its type are: it has no layer of other code and no hook, and its config
    has no option that its type does not know, and no switch that is not as by default.
    """
    config = model.config.get_text_config()
    names = {field.name for field in fields(config)}
    if {name for name in vars(config) if not name.startswith("_")} - names - _NO_OPTIONS:
        return False
    for field in fields(config):
        is_switch = isinstance(field.default, bool) and field.name not in _NO_OPTIONS and "bias" not in field.name
        if is_switch and getattr(config, field.name) != field.default:
            return False
    embedding = model.get_input_embeddings()  # has transformers' hook under gradient checkpointing
    return all(
        type(module).__module__.startswith(_ORDINARY)
        and (module is model or "forward" not in vars(module) or hasattr(module, "_hf_hook"))  # of a device map
        and (module is embedding or not module._forward_hooks)
        for module in model.modules()
    )


def whole_rows_for_model(model: PreTrainedModel) -> str | None:
    """Why a causal language model must see rows as they are, if it must."""
    config = model.config.get_text_config()
    if config.model_type in _INEXACT or getattr(config, "alibi", False):
        why = _INEXACT.get(config.model_type, "its ALiBi counts places in the row, not positions")
        return f"`{config.model_type}` cannot share a prompt: {why}"
    others = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_TYPES
    if others:
        return f"`{config.model_type}` has layers of {' and '.join(sorted(others))}, which read whole rows"
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return f"`{config.model_type}` takes no `position_ids`"
    return None


def hands_on_arguments(model: PreTrainedModel) -> bool:
    """Whether the attention function of a model's layers is called by name, with the arguments of its forward."""
    parameters = inspect.signature(model.base_model.forward).parameters
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return takes_more and bool(model._supports_attention_backend) and _has_one_config(model)


def _has_one_config(model: PreTrainedModel) -> bool:
    # PEFT's `layer_replication` copies layers with their config, which then never learns of another attention
    config: Any = model.config.get_text_config()
    configs = [vars(module)["config"] for module in model.base_model.modules() if "config" in vars(module)]
    return all(other is config or other.model_type != config.model_type for other in configs)


def windows_of(model: PreTrainedModel) -> dict[str, int | None]:
    """Sliding window of each kind of layer that a model has, `None` for full attention."""
    config = model.config.get_text_config()
    # A config may have a window, or kinds of layers, that the code of the model never reads
    backbone: Any = model.base_model
    if "create_sliding_window_causal_mask" not in inspect.unwrap(type(backbone).forward).__globals__:
        return {"full_attention": None}
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"]
    return {kind: window if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}


def whole_rows_for_adapter(model: Any) -> str | None:
    """Why an adapter of a PEFT model must see rows as they are, if it must: only PEFT's own forward prepares it."""
    if not is_peft_model(model):
        return None
    for config in model.peft_config.values():
        if config.is_prompt_learning:
            return "a prompt-learning adapter puts virtual tokens before every row"
        if getattr(config, "alora_invocation_tokens", None):
            return "activated LoRA looks for its invocation tokens in every row"
        if config.peft_type == "XLORA":
            return "X-LoRA mixes its adapters by what the whole row holds"
    return None


def noise_in(model: nn.Module) -> str | None:
    """Name of a module whose dropout is on, if there is one: shared tokens would share its noise."""
    for name, module in model.named_modules():
        rates = [module.p] if isinstance(module, nn.Dropout) else [getattr(module, "attention_dropout", 0.0)]
        if any(isinstance(rate, float) and rate > 0 for rate in rates):
            return name
    return None
