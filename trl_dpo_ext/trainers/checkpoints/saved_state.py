"""
The small JSON file that a trainer saves with its weights. It describes the reference of the rewards, and the training.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.quantization_config import QuantizationMethod

from trl_dpo_ext.run_files import STATE
from trl_dpo_ext.trainers.options.secrets import shown
from trl_dpo_ext.whole_file import write_text


__all__ = [
    "REWARD_OPTIONS",
    "adapter_parameters",
    "describe_source",
    "describe_weights",
    "read_state",
    "write_state",
]

# Options that rewards depend on, in addition to the weights
REWARD_OPTIONS = (
    "beta",
    "tokenization",
    "max_length",
    "max_prompt_length",
    "prompt_truncation_mode",
    "truncation_mode",
)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)


def _is_quantization(value: Any) -> bool:
    return isinstance(value, dict) and value.get("quant_method") in list(QuantizationMethod)


def _is_length(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in values


_WEIGHTS = {"dtype": _is_dtype, "adapter_dtype": _is_dtype, "quantization_config": _is_quantization}

# What a trainer saves, with a check of each value. `None` is always valid
_STATE: dict[str, Any] = {
    **_WEIGHTS,
    "trainer": _is_text,
    "beta": _is_number,
    "ld_alpha": _is_number,
    "num_tokens": _is_number,
    "max_length": _is_length,
    "max_prompt_length": _is_length,
    "tokenization": _is_one_of("separate", "joint"),
    "prompt_truncation_mode": _is_one_of("keep_start", "keep_end"),
    "truncation_mode": _is_one_of("keep_start", "keep_end"),
    "mixed_precision": _is_one_of("no", "fp16", "bf16", "fp8"),
    "objective": {},
    "schedule": {},
    "training": {},
    "run_log": {},
    "processes": _is_length,
    "save_only_model": _is_flag,
    "epoch_has_ended": _is_flag,
    "reference": {**_WEIGHTS, "kind": _is_text, "hash": _is_text, "model": _is_text, "revision": _is_text},
}


def write_state(folder: str | Path, state: dict[str, Any]) -> None:
    """Saves `state` in `folder`."""
    write_text(Path(folder, STATE), json.dumps(state, indent=2) + "\n")


def read_state(folder: str | Path) -> dict[str, Any]:
    """
    Reads the state from `folder`. It is empty if the folder is from another package.

    Raises:
        ValueError: If the file is not JSON, or has a value that no trainer saves. The message names the file.
    """
    path = Path(folder, STATE)
    if not path.exists():
        return {}
    try:
        state = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # also for bytes that are not text
        raise ValueError(f"{path} is not JSON: {error}. Copy it again from the original folder.") from None
    _check_state(state, _STATE, path)
    return state


def _check_state(state: Any, expected: dict[str, Any], path: Path, within: str = "") -> None:
    if not isinstance(state, dict):
        raise ValueError(f"{path}: {within or 'its content'} is not a mapping. Copy it again.")
    for name, is_right in expected.items():
        value = state.get(name)
        if value is None:
            continue
        if isinstance(is_right, dict):
            _check_state(value, is_right, path, f"`{name}`")
        elif not is_right(value):
            where = f" in {within}" if within else ""
            raise ValueError(f"{path}: `{name}={shown(value, name)}`{where} is not valid. Copy the file again.")


def describe_weights(model: PreTrainedModel) -> dict[str, Any]:
    """
    Describes the weights of a model so that they can be loaded in the same way: `dtype` and, if they exist,
    `adapter_dtype` and `quantization_config`.
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
    """Parameters of a PEFT model's active adapter, except DoRA's magnitudes, which TRL keeps in float32."""
    of_adapter = re.compile(rf"\.{re.escape(str(model.active_adapter))}(\.|$)")
    found = [(name, parameter) for name, parameter in model.named_parameters() if of_adapter.search(name)]
    return [parameter for name, parameter in found if "magnitude" not in name]


def describe_source(model: nn.Module) -> dict[str, str]:
    """
    Describes where the weights of a model (of a PEFT model: its base weights) were loaded from: `model`, the absolute
    path of a folder or the name of a hub repository with its `revision`. Empty for a model that was built in memory.
    """
    name = getattr(model.config, "_name_or_path", "")
    if name and os.path.isfile(os.path.join(name, "config.json")):
        return {"model": os.path.abspath(name)}
    commit = getattr(model.config, "_commit_hash", None)
    return {"model": name, "revision": commit} if name and commit else {}


def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
