"""
The small JSON file that a trainer puts beside its weights: what the rewards of this policy are measured against, and
how it was trained.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedModel

from trl_dpo_ext.whole_file import write_text


__all__ = [
    "REWARD_OPTIONS",
    "STATE_FILE",
    "adapter_parameters",
    "describe_source",
    "describe_weights",
    "read_state",
    "write_state",
]

STATE_FILE = "trl_dpo_ext.json"

# What rewards depend on beside the weights
REWARD_OPTIONS = (
    "beta",
    "tokenization",
    "max_length",
    "max_prompt_length",
    "prompt_truncation_mode",
    "truncation_mode",
)


def write_state(folder: str | Path, state: dict[str, Any]) -> None:
    """Writes `state` into `folder`."""
    write_text(Path(folder, STATE_FILE), json.dumps(state, indent=2) + "\n")


def read_state(folder: str | Path) -> dict[str, Any]:
    """Reads the state from `folder`; empty if a trainer of another package wrote it."""
    path = Path(folder, STATE_FILE)
    return json.loads(path.read_text()) if path.is_file() else {}


def describe_weights(model: PreTrainedModel) -> dict[str, Any]:
    """
    How a model's weights are held, so that they can be loaded the same way: `dtype`, and where there is one the
    `adapter_dtype` and the `quantization_config`.
    """
    described: dict[str, Any] = {"dtype": _name_of(model.dtype)}
    if is_peft_model(model):
        dtypes = {_name_of(parameter.dtype) for parameter in adapter_parameters(model)}
        described["adapter_dtype"] = max(dtypes, default="float32")
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is not None:
        described["quantization_config"] = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return described


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of a PEFT model's active adapter, without the magnitudes of DoRA, which TRL keeps in float32."""
    of_adapter = re.compile(rf"\.{re.escape(str(model.active_adapter))}(\.|$)")
    found = [(name, parameter) for name, parameter in model.named_parameters() if of_adapter.search(name)]
    return [parameter for name, parameter in found if "magnitude" not in name]


def describe_source(model: nn.Module) -> dict[str, str]:
    """
    What a model's weights (of a PEFT model, its base weights) were loaded from: `model`, the absolute path of a folder
    or the name of a hub repository with its `revision`. Empty for a model that was built in memory.
    """
    name = getattr(model.config, "_name_or_path", "")
    if name and os.path.isfile(os.path.join(name, "config.json")):
        return {"model": os.path.abspath(name)}
    commit = getattr(model.config, "_commit_hash", None)
    return {"model": name, "revision": commit} if name and commit else {}


def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
