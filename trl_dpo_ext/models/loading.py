"""Models from a folder or the hub with every weight that they have, and none that they do not."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import is_peft_model
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig

from trl_dpo_ext.compat import create_model_from_path, loading_models_by
from trl_dpo_ext.models.limits import check_config


__all__ = ["check_adapter", "load_adapter", "load_model", "whole_models"]

_NAMES_SHOWN = 3

# Parts of an adapter that PEFT loads by other ways, and reports as missing
_SHARED = ("prompt_encoder", "vblora_vector_bank", ".tinylora_v.", ".unilora_theta_d.")


def load_model(name: str, *args: Any, **kwargs: Any) -> Any:
    """
    Loads a model as TRL does, and checks that its weights are those of its folder.

    transformers draws a weight that the folder lacks at random, and leaves one that the model lacks away, with no more
    than a warning.

    Args:
        name (`str`):
            Folder, or name on the hub.
        *args:
            As of TRL's `create_model_from_path`.
        **kwargs:
            As of TRL's `create_model_from_path`.

    Returns:
        [`~transformers.PreTrainedModel`]

    Raises:
        ValueError: If it is no causal language model, or a weight is missing, is of another shape, is none of the
            model's, or cannot be read.
    """
    of_config = {key: kwargs[key] for key in ("revision", "trust_remote_code") if key in kwargs}
    check_config(AutoConfig.from_pretrained(name, **of_config))
    others = kwargs.get("ignore_mismatched_sizes", False)
    loaded: Any
    try:
        loaded = create_model_from_path(
            name, *args, **{**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        )
    except SafetensorError as error:
        raise ValueError(f"The weights in {name} cannot be read: {error}. Copy or save them again.") from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        keyword = str(error).split("argument ")[-1].strip("'")
        raise ValueError(
            f"`model_init_kwargs` holds `{keyword}`, which {str(error).split('.__init__')[0]} does not take. Leave it "
            "out."
        ) from error
    model, found = loaded
    if found["mismatched_keys"] and not others:
        key, in_folder, in_model = sorted(found["mismatched_keys"])[0]
        raise ValueError(
            f"The weights in {name} are not those of its config.json: `{key}` has the shape {tuple(in_folder)}, and "
            f"the model's has {tuple(in_model)}. Save the model again."
        )
    allowed = {key for key, *_ in found["mismatched_keys"]}
    _check(f"The weights in {name}", set(found["missing_keys"]) - allowed, set(found["unexpected_keys"]))
    return model


def load_adapter(model: Any, folder: str, adapter_name: str = "default") -> Any:
    """
    Loads an adapter, and checks that its weights are those of its config.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Base model, or one with adapters already.
        folder (`str`):
            Folder, or name on the hub.
        adapter_name (`str`, *optional*, defaults to `"default"`):
            Its name.

    Returns:
        [`~peft.PeftModel`]

    Raises:
        ValueError: If a weight is missing, is of another shape, is none of the adapter's, or cannot be read.
    """
    if not is_peft_model(model):
        with _readable(folder):
            model = PeftModel.from_pretrained(model, folder, adapter_name)
    check_adapter(model, folder, adapter_name)
    return model


def check_adapter(model: Any, folder: str, adapter_name: str = "default") -> None:
    """
    Loads the weights of an adapter (again), and checks that they are those of its config.

    Raises:
        ValueError: As [`load_adapter`].
    """
    with _readable(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is an error here
        # `PeftModel.from_pretrained` does not return it
        found = model.load_adapter(folder, adapter_name)
    missing = {key for key in found.missing_keys if not any(part in key for part in _SHARED)}
    unexpected = set() if model.peft_config[adapter_name].is_prompt_learning else set(found.unexpected_keys)
    _check(f"The weights of the adapter in {folder}", missing, unexpected)


@contextmanager
def whole_models() -> Iterator[None]:
    """Has TRL load models by [`load_model`]."""
    with loading_models_by(load_model):
        yield


@contextmanager
def _readable(folder: str) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"The weights in {folder} cannot be read: {error}. Copy or save them again.") from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        problem = next(line.strip() for line in str(error).splitlines() if "size mismatch" in line)
        raise ValueError(
            f"The adapter in {folder} does not fit its adapter_config.json, or its base model: {problem} Save it "
            "again."
        ) from error


def _check(what: str, missing: set[str], unexpected: set[str]) -> None:
    for keys, problem in ((missing, "there is no weight"), (unexpected, "the model has no weight")):
        if keys:
            shown = ", ".join(f"`{key}`" for key in sorted(keys)[:_NAMES_SHOWN])
            more = f" and {len(keys) - _NAMES_SHOWN} more" if len(keys) > _NAMES_SHOWN else ""
            raise ValueError(
                f"{what} do not fit its config: {problem} {shown}{more}. Save them again; if this is as it should be, "
                "load the model yourself and pass it."
            )
