"""Checks of the types, ranges and values of options before anything is loaded."""

import inspect
import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from datetime import date
from enum import Enum
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from accelerate.utils import DynamoBackend
from torch.utils.checkpoint import checkpoint
from transformers import SchedulerType
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from trl_dpo_ext.spelling import did_you_mean
from trl_dpo_ext.trainers.options.secrets import shown


__all__ = ["VALUES", "check_options"]


class _Range(NamedTuple):
    least: float
    most: float
    above: bool = False  # whether `least` itself is excluded

    def problem_with(self, number: Any) -> str | None:
        if not isinstance(number, Integral) and not math.isfinite(number):
            return f"must be a finite number{' above 0' * self.above}"
        if number > self.most:
            return f"must be at most {self.most:.10g}"
        if self.above and number <= self.least:
            return f"must be a finite number above {self.least:g}"
        return f"must be at least {self.least:g}" if number < self.least else None


# Ranges of options that are not in the lists below. Larger values overflow in float32
_NUMBER = _Range(-1e8, 1e8)
_INTEGER = _Range(0, 2**31 - 1)

_COUNT = _Range(1, 2**31 - 1)
_AMOUNT = _Range(0, 1e8)
_POSITIVE = _Range(0, 1e8, above=True)
_SHARE = _Range(0, 1)
_RANGES = {
    **dict.fromkeys(
        (
            "completions_per_forward",
            "dataloader_prefetch_factor",
            "ddp_bucket_cap_mb",
            "ddp_timeout",
            "eval_accumulation_steps",
            "global_batch_size",
            "gradient_accumulation_steps",
            "lora_alpha",
            "lora_r",
            "max_tokens_per_row",
            "pad_to_multiple_of",
            "per_device_eval_batch_size",
            "per_device_train_batch_size",
            "precompute_ref_batch_size",
            "ref_model_sync_steps",
            "save_total_limit",
            "top_m",
            "torch_empty_cache_steps",
        ),
        _COUNT,
    ),
    **dict.fromkeys(
        (
            "adam_epsilon",
            "eval_delay",
            "max_grad_norm",
            "neftune_noise_alpha",
            "router_aux_loss_coef",
            "score_tie_gap",
            "warmup_steps",
            "weight_decay",
        ),
        _AMOUNT,
    ),
    **dict.fromkeys(
        ("beta", "eval_steps", "learning_rate", "logging_steps", "num_train_epochs", "save_steps"), _POSITIVE
    ),
    **dict.fromkeys(
        ("adam_beta1", "adam_beta2", "label_smoothing", "ld_alpha", "lora_dropout", "ref_model_mixup_alpha"), _SHARE
    ),
    "data_seed": _Range(0, 2**32 - 1),  # NumPy's
    "dataloader_num_workers": _Range(0, 1024),
    "dataset_num_proc": _Range(1, 1024),
    "discopop_tau": _Range(1e-8, 1e8),
    "f_alpha_divergence_coef": _Range(-100, 100),  # an exponent
    "local_rank": _Range(-1, 2**31 - 1),
    "max_completions": _Range(2, 2**31 - 1),
    **dict.fromkeys(("max_length", "max_prompt_length"), _Range(-(2**31), 2**31 - 1)),  # see `RowOptions`
    "max_steps": _Range(-1, 2**31 - 1),
    "seed": _Range(0, 2**32 - 1),
}

_ENUMS: dict[str, type[Enum]] = {
    "eval_strategy": IntervalStrategy,
    "hub_strategy": HubStrategy,
    "logging_strategy": IntervalStrategy,
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
    "save_strategy": SaveStrategy,
}

# Values of text options whose fields do not list them. TRL and transformers check some only at the first update
VALUES: dict[str, tuple[str, ...]] = {
    **{name: tuple(member.value for member in enum) for name, enum in _ENUMS.items()},
    "bnb_4bit_quant_storage": ("uint8", "float16", "bfloat16", "float32", "float64"),
    "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    "loss_type": (
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sft",
        "sigmoid_norm",
    ),
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "pad_to_multiple_of": ("auto", "none", "null"),  # or a number
    "torch_compile_backend": tuple(backend.value.lower() for backend in DynamoBackend),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}

# Mappings that may also be given as the path of a file
_FILES = ("accelerator_config", "deepspeed", "fsdp_config")

# Types that options accept in addition to their annotation
_ALSO: dict[str, Any] = {
    "accelerator_config": AcceleratorConfig,
    "debug": type(None),
    "fsdp": bool,  # text is the older form in transformers
    "output_dir": os.PathLike,
    "ref_logps_cache_dir": os.PathLike,
    "resume_from_checkpoint": bool | os.PathLike,
}

# Options whose keys are the keyword arguments of these functions
_KEYWORDS_OF: dict[str, Callable[..., Any]] = {
    "accelerator_config": AcceleratorConfig,
    "activation_checkpointing_kwargs": checkpoint,
    "gradient_checkpointing_kwargs": checkpoint,
}

_FEW = 6  # number of choices listed in a message

_PLAIN = {bool, int, float, str, list, type(None)}
_IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}


def check_options(options: Any) -> None:
    """
    Checks the values of a config's fields: types, finite numbers in range, and text that exists. Objects of other
    libraries, such as accelerate's, are not checked.

    Whole numbers given as floats (`max_steps=10.0`) are converted to integers.

    Args:
        options:
            A dataclass, before its values are used.

    Raises:
        ValueError: If a value is not valid. The message names the first such option and what it accepts.
    """
    hints = get_type_hints(type(options))
    for option in fields(options):
        if not option.init:
            continue
        name, value, kinds = option.name, getattr(options, option.name), _kinds(hints[option.name])
        if isinstance(value, float) and int in kinds and float not in kinds and value.is_integer():
            value = int(value)
            setattr(options, name, value)
        choices = option.metadata.get("choices") or VALUES.get(name)
        is_list = list in kinds and isinstance(value, list)
        for each in value if is_list else [value]:
            if int in kinds and isinstance(each, str) and each.isdecimal():
                each = int(each)  # also for an option that accepts text
            _check_kind(name, each, kinds - {type(None), list} if is_list else kinds, choices)
            if isinstance(each, Real) and not isinstance(each, bool):
                _check_number(name, each, kinds)
            elif isinstance(each, dict):
                _check_keywords(name, each, _KEYWORDS_OF.get(name))
    if getattr(options, "optim_args", None):
        _check_pairs("optim_args", options.optim_args)
    if getattr(options, "lr_scheduler_kwargs", None):
        schedule = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(options.lr_scheduler_type or "constant_with_warmup")]
        _check_keywords("lr_scheduler_kwargs", options.lr_scheduler_kwargs, schedule)


def _kinds(hint: Any) -> set[type]:
    # The types in an annotation, including those of the members of a list
    origin = get_origin(hint)
    if origin is Literal:
        return {type(value) for value in get_args(hint)}
    if origin is dict:
        return {dict}
    inner = {kind for part in get_args(hint) for kind in _kinds(part)}
    return inner | {list} if origin is list else inner or {str if issubclass(hint, str) else hint}


def _check_kind(name: str, value: Any, kinds: set[type], choices: Collection[Any] | None) -> None:
    if isinstance(value, str) and dict in kinds:
        _check_mapping(name, value)
    elif choices is not None and (isinstance(value, str) or value is None and type(None) not in kinds):
        if value not in list(choices):
            raise ValueError(f"`{name}={shown(value, name)}` does not exist.{_advice(value, choices)}")
    elif not _is_of(value, kinds) and not isinstance(value, _ALSO.get(name, ())):
        text = dict not in kinds and str in kinds
        takes = " or ".join(_IN_WORDS[kind] for kind in _IN_WORDS if kind in kinds and (text or kind is not str))
        advice = " Write it in quotes." if text and isinstance(value, (bool, Real, date)) else ""
        what = "a list of " * (list in kinds) + (takes or "a valid value")
        raise ValueError(f"`{name}={shown(value, name)}` is not {what}.{advice}")


def _is_of(value: Any, kinds: set[type]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, Integral) and bool in kinds and value in (0, 1):
        return True
    if isinstance(value, Real):
        is_number = float in kinds or int in kinds and isinstance(value, Integral)
        return is_number and list not in kinds
    return isinstance(value, tuple(kinds))


def _advice(value: Any, choices: Collection[Any]) -> str:
    every = f" Choose one of {', '.join(repr(choice) for choice in choices if choice is not None)}."
    return every if len(choices) <= _FEW else did_you_mean(str(value), map(str, choices), repr, cutoff=0.8) or every


def _check_number(name: str, number: Any, kinds: set[type]) -> None:
    problem = _RANGES.get(name, _NUMBER if float in kinds else _INTEGER).problem_with(number)
    if problem is not None:
        raise ValueError(f"`{name}={shown(number)}` {problem}.")


def _check_keywords(name: str, keywords: Mapping[str, Any], of: Callable[..., Any] | None) -> None:
    if of is None or not isinstance(keywords, Mapping):
        return
    known = list(inspect.signature(of).parameters)
    for keyword in keywords:
        if keyword not in known:
            raise ValueError(
                f"`{name}` has {shown(keyword)}, which does not exist.{did_you_mean(str(keyword), known)}"
            )


def _check_pairs(name: str, text: str) -> None:
    # Split as in transformers
    for pair in text.replace(" ", "").split(","):
        key, equals, value = pair.partition("=")
        if not (key and equals and value) or "=" in value:
            raise ValueError(f"`{name}={shown(text, name)}`: {shown(pair)} is not `name=value`. Separate by commas.")


def _check_mapping(name: str, text: str) -> None:
    # Text that is a mapping in JSON, or the path of a file
    if not text.startswith("{"):
        if name in _FILES:
            if not os.path.isfile(text) and not (name == "fsdp_config" and not text):
                raise ValueError(f"`{name}`: there is no file {shown(text)}.")
            return
        raise ValueError(f"`{name}={shown(text, name)}` is not a mapping. Write it as YAML, or as JSON in quotes.")
    try:
        keywords = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{name}` is not a JSON mapping: {getattr(error, 'msg', error)}.") from None
    _check_keywords(name, keywords, _KEYWORDS_OF.get(name))
