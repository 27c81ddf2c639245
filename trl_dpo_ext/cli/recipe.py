"""The options of a training command: a YAML recipe and the command line, read strictly."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

from trl_dpo_ext.data.spelling import did_you_mean
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
            not one source of data.
        OSError: If the recipe cannot be read.
    """
    parser = TrlParser(
        (ScriptArguments, config_class, ModelConfig, DatasetMixtureConfig, StageArguments),
        prog=f"trl-dpo-ext {command}",
        allow_abbrev=False,
    )
    options = {action.dest for action in parser._actions} | {"config", "env"}
    if "--config" in argv:
        position = argv.index("--config") + 1
        if position == len(argv):
            raise ValueError("`--config` needs the path of a recipe.")
        path = Path(argv[position])
        keys = yaml.safe_load(path.read_text())
        if not isinstance(keys, dict):
            raise ValueError(f"{path} is not a YAML mapping of options to values.")
        for key in keys:
            _check_option(str(key), options, f" in {path}")
    flags = {flag for action in parser._actions for flag in action.option_strings}
    for word in argv:
        if word.startswith("--") and word.split("=")[0] not in flags | {"--config"}:
            _check_option(word[2:].split("=")[0], options, "")
    recipe = Recipe(*parser.parse_args_and_config(argv))
    _check_data_options(recipe.script, recipe.mixture)
    return recipe


def _check_option(name: str, options: set[str], where: str) -> None:
    if name not in options:
        raise ValueError(f"there is no option `{name}`{where}.{did_you_mean(name, options)}")


def _check_data_options(script: ScriptArguments, mixture: DatasetMixtureConfig) -> None:
    if bool(mixture.datasets) == bool(script.dataset_name):
        found = "both are given" if script.dataset_name else "neither is given"
        raise ValueError(f"the data comes from `dataset_name` or from `datasets`; {found}.")
