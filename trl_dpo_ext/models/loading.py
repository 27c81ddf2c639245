"""Loading of models and adapters, with a check that all their weights were loaded."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import is_peft_model
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification

from trl_dpo_ext.compat import create_model_from_path, loading_models_by
from trl_dpo_ext.models.limits import check_config


__all__ = ["check_adapter", "load_adapter", "load_classifier", "load_model", "whole_models"]

_NAMES_SHOWN = 3

# Parts of an adapter that PEFT loads separately and reports as missing
_SHARED = ("prompt_encoder", "vblora_vector_bank", ".tinylora_v.", ".unilora_theta_d.")


def load_model(name: str, *args: Any, **kwargs: Any) -> Any:
    """
    Loads a model like TRL, and checks that its weights match those in its folder.

    transformers only warns if the folder lacks a weight, which it initializes at random, or has a weight that the
    model lacks.

    Args:
        name (`str`):
            Folder or hub name.
        *args:
            Same as in TRL's `create_model_from_path`.
        **kwargs:
            Same as in TRL's `create_model_from_path`.

    Returns:
        [`~transformers.PreTrainedModel`]

    Raises:
        ValueError: If it is not a causal language model, or a weight is missing, unexpected, unreadable or has another
            shape.
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
            f"`model_init_kwargs` has `{keyword}`, which {str(error).split('.__init__')[0]} does not accept. Leave it "
            "out."
        ) from error
    model, found = loaded
    _check_loaded(name, found, may_mismatch=others)
    return model


def load_classifier(name: str, **kwargs: Any) -> Any:
    """
    Loads a sequence classifier or reward model, and checks its weights as [`load_model`] does.

    Args:
        name (`str`):
            Folder or hub name of a model, or of an adapter that `trl.RewardTrainer` saved.
        **kwargs:
            Same as in `AutoModelForSequenceClassification.from_pretrained`.

    Returns:
        [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]

    Raises:
        ValueError: If a weight is missing, unexpected, unreadable or has another shape: for example the head of a
            model that is no classifier.
    """
    adapter = None
    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        adapter, config = name, PeftConfig.from_pretrained(name)
        if not config.modules_to_save:
            raise ValueError(f"The adapter in {adapter} has no head, so it is no classifier. Pass a reward model.")
        name, kwargs = str(config.base_model_name_or_path), {"num_labels": 1, **kwargs}
    with _readable(name):
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            name, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
    model, found = loaded
    if adapter is None:
        _check_loaded(name, found)
        return model
    return load_adapter(model, adapter)  # with its head


def load_adapter(model: Any, folder: str, adapter_name: str = "default") -> Any:
    """
    Loads an adapter, and checks that its weights match its config.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Base model, or a model with other adapters.
        folder (`str`):
            Folder or hub name.
        adapter_name (`str`, *optional*, defaults to `"default"`):
            Name of the adapter.

    Returns:
        [`~peft.PeftModel`]

    Raises:
        ValueError: If a weight is missing, unexpected, unreadable or has another shape.
    """
    if not is_peft_model(model):
        with _readable(folder):
            model = PeftModel.from_pretrained(model, folder, adapter_name)
    check_adapter(model, folder, adapter_name)
    return model


def check_adapter(model: Any, folder: str, adapter_name: str = "default") -> None:
    """
    Loads the weights of an adapter (again), and checks that they match its config.

    Raises:
        ValueError: Same as in [`load_adapter`].
    """
    with _readable(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's warnings are errors here
        # `PeftModel.from_pretrained` does not return the result of loading
        found = model.load_adapter(folder, adapter_name)
    missing = {key for key in found.missing_keys if not any(part in key for part in _SHARED)}
    unexpected = set() if model.peft_config[adapter_name].is_prompt_learning else set(found.unexpected_keys)
    _check(f"The weights of the adapter in {folder}", missing, unexpected)


@contextmanager
def whole_models() -> Iterator[None]:
    """Makes TRL load models with [`load_model`]."""
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
            f"The adapter in {folder} does not match its adapter_config.json or its base model: {problem} Save it "
            "again."
        ) from error


def _check_loaded(name: str, found: dict[str, Any], *, may_mismatch: bool = False) -> None:
    if found["mismatched_keys"] and not may_mismatch:
        key, in_folder, in_model = sorted(found["mismatched_keys"])[0]
        raise ValueError(
            f"The weights in {name} do not match its config.json: `{key}` has the shape {tuple(in_folder)}, but the "
            f"model's has {tuple(in_model)}. Save the model again."
        )
    allowed = {key for key, *_ in found["mismatched_keys"]}
    _check(f"The weights in {name}", set(found["missing_keys"]) - allowed, set(found["unexpected_keys"]))


def _check(what: str, missing: set[str], unexpected: set[str]) -> None:
    for keys, problem in ((missing, "missing weights"), (unexpected, "unexpected weights")):
        if keys:
            shown = ", ".join(f"`{key}`" for key in sorted(keys)[:_NAMES_SHOWN])
            more = f" and {len(keys) - _NAMES_SHOWN} more" if len(keys) > _NAMES_SHOWN else ""
            raise ValueError(
                f"{what} do not match its config: {problem} {shown}{more}. Save them again. If this is intended, load "
                "the model yourself and pass it."
            )
