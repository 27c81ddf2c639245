"""Options of a training command from a YAML recipe and the command line, with strict checks."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

from trl_dpo_ext.cli.options import OptionParser
from trl_dpo_ext.cli.recipe_file import read_recipe
from trl_dpo_ext.compat import DatasetConfig
from trl_dpo_ext.spelling import did_you_mean
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.options.installed import check_package
from trl_dpo_ext.trainers.options.option_checks import check_options
from trl_dpo_ext.trainers.options.secrets import shown


__all__ = ["Recipe", "StageArguments", "parse"]

# Options that only apply to adapters, and options that only apply to 4-bit weights
_OF_ADAPTER = {
    "lora_alpha",
    "lora_dropout",
    "lora_modules_to_save",
    "lora_r",
    "lora_target_modules",
    "lora_target_parameters",
    "lora_task_type",
    "use_dora",
    "use_rslora",
}
_OF_4BIT = {"bnb_4bit_quant_type", "bnb_4bit_quant_storage", "use_bnb_nested_quant"}

# Attention implementations that need another package: its module and name
_ATTENTION = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}


@dataclass
class StageArguments:
    """
    Options of the stage: the adapter that it starts from, and whether it only prints a summary.

    Parameters:
        adapter (`str`, *optional*):
            What to do with the LoRA adapter in the folder `model_name_or_path`: `"merge"` it into the base model (in
            `output_dir/merged`) and train the merged model, or `"keep"` training the adapter.
        dry_run (`bool`, *optional*, defaults to `False`):
            Print the options, batches, memory and the doctor's report on the data, without training.
    """

    adapter: str | None = field(
        default=None,
        metadata={
            "help": "The adapter in `model_name_or_path`: 'merge' it into its base model, or 'keep' training it.",
            "choices": ["merge", "keep"],
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Print options, batches, estimated memory and the doctor's report, without training."},
    )


@dataclass
class Recipe:
    """Options of a recipe and the command line."""

    script: ScriptArguments
    args: BaseDPOConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig
    stage: StageArguments


def parse(command: str, config_class: type[BaseDPOConfig], argv: list[str]) -> Recipe:
    """
    Reads a recipe and the command line, with strict checks.

    Args:
        command (`str`):
            Name of the command.
        config_class (`type`):
            Class of the trainer's options.
        argv (`list[str]`):
            Words after the name of the command.

    Returns:
        [`Recipe`]

    Raises:
        ValueError: If an option or its value does not exist (the message suggests the nearest name), or there is not
            exactly one model and one source of data.
        OSError: If the recipe cannot be read.
    """
    parser = OptionParser(command, (StageArguments, ScriptArguments, config_class, ModelConfig, DatasetMixtureConfig))
    words, path = _without_config([part for word in argv for part in _apart(word)])
    flags = {word.split("=")[0][2:] for word in words if word.startswith("--")}
    for name in flags:
        parser.check_name(name, as_flag=True)
    recipe = {} if path is None else read_recipe(Path(path))
    for name, value in recipe.items():
        parser.check_name(str(name), f" in {path}")
        parser.check_value(name, value, f" in {path}")
    _check_datasets(recipe.get("datasets", []))
    _set_environment(recipe.pop("env", None) or {}, path)
    parser.set_defaults_with_config(**recipe)
    given = parser.parse_known_args(words)[0]
    on_cpu = given.dry_run and not given.use_cpu and not torch.accelerator.is_available()
    if on_cpu:  # transformers rejects bf16 and others without an accelerator
        words += ["--use_cpu", "true"]
    stage, script, args, model, mixture = parser.parse_args_into_dataclasses(words)
    if on_cpu and args.process_index == 0:
        print("No accelerator was found. The options are read with `use_cpu=True`.")
    for options in (stage, script, model, mixture):
        check_options(options)
    # `--use_peft false` disables the adapter of a recipe
    named = flags if "use_peft" in flags else flags | {str(name) for name in recipe}
    _check_model_options(model, named)
    _check_data_options(script, mixture)
    # YAML has true and false, the command line only text
    resume = str(args.resume_from_checkpoint).lower()
    args.resume_from_checkpoint = {"true": True, "false": None}.get(resume, args.resume_from_checkpoint)
    return Recipe(script, args, model, mixture, stage)


def _apart(word: str) -> list[str]:
    # `TrlParser` recognizes `--config` only as a separate word
    return word.split("=", 1) if word.startswith("--config=") else [word]


def _without_config(words: list[str]) -> tuple[list[str], str | None]:
    # Returns the other words, and the path of the recipe
    if "--config" not in words:
        return words, None
    position = words.index("--config")
    if position + 1 == len(words):
        raise ValueError("`--config` needs the path of a recipe.")
    rest = words[:position] + words[position + 2 :]
    if "--config" in rest:
        raise ValueError("`--config` is given twice. Pass one recipe.")
    return rest, words[position + 1]


def _set_environment(variables: Any, path: str | None) -> None:
    if not isinstance(variables, dict) or any(isinstance(value, (dict, list)) for value in variables.values()):
        raise ValueError(f"`env` in {path} is not a mapping of environment variables to values.")
    os.environ.update({str(name): str(value) for name, value in variables.items()})


def _check_model_options(model: ModelConfig, named: set[str]) -> None:
    if model.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is missing. Set it to the name or the folder of the model.")
    for name in sorted(named):
        if name in _OF_ADAPTER and not model.use_peft:
            raise ValueError(
                f"`{name}={getattr(model, name)!r}` has no effect without `use_peft=True`. Set `use_peft=True`, or "
                f"leave `{name}` out to train all weights."
            )
        if name in _OF_4BIT and not model.load_in_4bit:
            raise ValueError(f"`{name}` has no effect without `load_in_4bit=True`. Set it, or leave `{name}` out.")
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(model, name):
            if not (model.use_peft or model.model_name_or_path is None):
                raise ValueError(f"`{name}=True` freezes the weights, so nothing would be trained. Set `use_peft`.")
            check_package(f"{name}=True", "bitsandbytes", "bitsandbytes")
    attention = model.attn_implementation
    if attention in _ATTENTION:
        check_package(f"attn_implementation={attention!r}", *_ATTENTION[attention])
    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if attention is not None and "/" not in attention and attention not in known:  # with a slash: a kernel on the hub
        near = did_you_mean(attention, known, repr) or f" Choose one of {', '.join(map(repr, known))}."
        raise ValueError(f"`attn_implementation={attention!r}` does not exist.{near}")


def _check_datasets(sources: Any) -> None:
    known = {field.name for field in fields(DatasetConfig)}
    if not isinstance(sources, list):
        raise ValueError(f"`datasets`: {shown(sources)} is not a list of mappings with a `path`.")
    for place, source in enumerate(sources):
        where = f"`datasets`, entry {place},"
        if not isinstance(source, dict) or not isinstance(source.get("path"), str):
            raise ValueError(f"{where} {shown(source)} is not a mapping with a `path`.")
        for name in source:
            if name not in known:
                raise ValueError(f"{where} has `{name}`, which does not exist.{did_you_mean(str(name), known)}")


def _check_data_options(script: ScriptArguments, mixture: DatasetMixtureConfig) -> None:
    if bool(mixture.datasets) == bool(script.dataset_name):
        found = "both are given" if script.dataset_name else "neither is given"
        raise ValueError(f"the data comes from either `dataset_name` or `datasets`; {found}.")
    if script.dataset_name and mixture.test_split_size is not None:
        raise ValueError(
            f"`test_split_size={mixture.test_split_size}` has no effect with `dataset_name`, because it divides the "
            "data of `datasets`. Set `dataset_test_split` instead, or list the data in `datasets`."
        )
