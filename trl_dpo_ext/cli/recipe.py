"""The options of a training command: a YAML recipe and the command line, read strictly."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

from trl_dpo_ext.cli.options import OptionParser
from trl_dpo_ext.data.spelling import did_you_mean_path
from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["Recipe", "StageArguments", "parse"]


@dataclass
class StageArguments:
    """
    Where a stage of training starts, and whether it does.

    Parameters:
        adapter (`str`, *optional*):
            What to do with the LoRA adapter in the folder `model_name_or_path`: `"merge"` it into the base model,
            in `output_dir/merged`, and train from there, or `"keep"` it and go on training it.
        dry_run (`bool`, *optional*, defaults to `False`):
            Print the options, batches, memory and what the doctor says of the data, and train nothing.
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
        metadata={"help": "Print options, batches, an estimate of memory and the doctor's report; train nothing."},
    )


@dataclass
class Recipe:
    """What a recipe and the command line say."""

    script: ScriptArguments
    args: BaseDPOConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig
    stage: StageArguments


def parse(command: str, config_class: type[BaseDPOConfig], argv: list[str]) -> Recipe:
    """
    Reads a recipe and the command line strictly.

    Args:
        command (`str`):
            Name of the command.
        config_class (`type`):
            Options of its trainer.
        argv (`list[str]`):
            Words after the command.

    Returns:
        [`Recipe`]

    Raises:
        ValueError: If an option does not exist, with the nearest name, or has a value that does not exist, or there is
            not one model and one source of data.
        OSError: If the recipe cannot be read.
    """
    parser = OptionParser(command, (StageArguments, ScriptArguments, config_class, ModelConfig, DatasetMixtureConfig))
    words = [part for word in argv for part in _apart(word)]
    for word in words:
        flag = word.split("=")[0]
        if flag.startswith("--") and flag not in parser.flags:
            parser.check_name(flag[2:])
    parser.set_defaults_with_config(**_read_recipe(parser, words))
    given = parser.parse_known_args(_without_config(words))[0]
    on_cpu = given.dry_run and not given.use_cpu and not torch.accelerator.is_available()
    if on_cpu:  # transformers refuses bf16, say, where training could not use it
        words += ["--use_cpu", "true"]
    stage, script, args, model, mixture = parser.parse_args_and_config(words)
    if on_cpu and args.process_index == 0:
        print("There is no accelerator here: the options are read with `use_cpu=True`.")
    _check_model_options(args, model)
    _check_data_options(script, mixture)
    # YAML has true and false for it, words only text
    resume = str(args.resume_from_checkpoint).lower()
    args.resume_from_checkpoint = {"true": True, "false": None}.get(resume, args.resume_from_checkpoint)
    return Recipe(script, args, model, mixture, stage)


def _apart(word: str) -> list[str]:
    # `TrlParser` knows `--config` by a word of its own
    return word.split("=", 1) if word.startswith("--config=") else [word]


def _without_config(words: list[str]) -> list[str]:
    if "--config" not in words:
        return words
    position = words.index("--config")
    return words[:position] + words[position + 2 :]


def _read_recipe(parser: OptionParser, words: list[str]) -> dict[str, Any]:
    # The options in a recipe, all of which exist and take their values; without its `env`
    if "--config" not in words:
        return {}
    position = words.index("--config") + 1
    if position == len(words):
        raise ValueError("`--config` needs the path of a recipe.")
    path = Path(words[position])
    try:
        recipe = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no recipe {path}.{did_you_mean_path(path)}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1},"
        raise ValueError(f"{path}{line} is not YAML: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} is not a YAML mapping of options to values.")
    for name, value in recipe.items():
        parser.check_name(str(name), f" in {path}")
        parser.check_value(name, value, f" in {path}")
    return {name: value for name, value in recipe.items() if name != "env"}


def _check_model_options(args: BaseDPOConfig, model: ModelConfig) -> None:
    if model.model_name_or_path is None:
        raise ValueError("the model comes from `model_name_or_path`, which is not given.")
    if not (math.isfinite(args.learning_rate) and args.learning_rate > 0):
        raise ValueError(f"`learning_rate={args.learning_rate}` must be a finite number above 0.")
    if model.use_peft and model.lora_r < 1:
        raise ValueError(f"`lora_r={model.lora_r}` must be at least 1.")


def _check_data_options(script: ScriptArguments, mixture: DatasetMixtureConfig) -> None:
    if bool(mixture.datasets) == bool(script.dataset_name):
        found = "both are given" if script.dataset_name else "neither is given"
        raise ValueError(f"the data comes from `dataset_name` or from `datasets`; {found}.")
    if script.dataset_name and mixture.test_split_size is not None:
        raise ValueError(
            f"`test_split_size={mixture.test_split_size}` has no effect with `dataset_name`: it divides what "
            "`datasets` lists. Leave it out and name a split in `dataset_test_split`, or list the data in `datasets`."
        )
