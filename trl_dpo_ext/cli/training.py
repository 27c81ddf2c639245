"""A trainer from a recipe, with the keys of `trl dpo` and more, read strictly."""

import difflib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_quantization_config,
)

from trl_dpo_ext.cli.adapter import adapter_config
from trl_dpo_ext.cli.dry_run import dry_run
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer


__all__ = ["Recipe", "StageArguments", "parse", "train"]


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


def train(command: str, trainer_class: type[BaseDPOTrainer], argv: list[str]) -> int:
    """
    Trains, saves, and pushes if asked to.

    Args:
        command (`str`):
            Name of the command.
        trainer_class (`type`):
            Trainer to use.
        argv (`list[str]`):
            `--config recipe.yaml` and/or `--option value`; the command line wins.

    Returns:
        `int`: 0, 2 for options or data that cannot be trained with, 1 for a training that stopped.
    """
    try:
        recipe = parse(command, trainer_class.config_class, argv)
        _check_data_options(recipe.script, recipe.mixture)
        _check_stage(recipe)
        rows = get_dataset(recipe.mixture) if recipe.mixture.datasets else _load(recipe.script)
        train_dataset = _split(rows, recipe.script.dataset_train_split)
        if recipe.stage.dry_run:
            return dry_run(recipe, train_dataset)
        trainer = _build(trainer_class, recipe, rows, train_dataset)
    except (ValueError, OSError, DatasetGenerationError) as error:
        cause = f" ({error.__cause__})" if isinstance(error, DatasetGenerationError) else ""
        print(f"trl-dpo-ext {command}: {error}{cause}", file=sys.stderr)
        return 2
    script, args = recipe.script, recipe.args
    try:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except (ValueError, OSError) as error:
        if not _is_ours(error):
            raise
        print(f"trl-dpo-ext {command}: {error}", file=sys.stderr)
        return 1
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"Saved to {args.output_dir}.")
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    trainer.accelerator.wait_for_everyone()  # no process leaves while another still saves
    trainer.accelerator.end_training()
    return 0


def _build(trainer_class: type[BaseDPOTrainer], recipe: Recipe, rows: Any, train_dataset: Any) -> BaseDPOTrainer:
    script, args, model = recipe.script, recipe.args, recipe.model
    given = dict(args.model_init_kwargs or {})
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    } | given
    try:
        return trainer_class(
            args=args,
            train_dataset=train_dataset,
            eval_dataset=None if args.eval_strategy == "no" else _split(rows, script.dataset_test_split),
            peft_config=adapter_config(args, model),
            **_start_of(recipe),
        )
    except OSError as error:
        raise OSError(f"{error}{_similar_folder(model.model_name_or_path)}") from error


def _is_ours(error: BaseException) -> bool:
    # This package's errors are written for users; others keep their traceback
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("trl_dpo_ext")


def _similar_folder(path: str) -> str:
    # A misspelt folder is looked for on the hub
    folder = Path(path)
    if folder.is_dir() or not folder.parent.is_dir():
        return ""
    beside = [other.name for other in folder.parent.iterdir() if other.is_dir()]
    similar = difflib.get_close_matches(folder.name, beside, n=1)
    return f"\nThere is no folder {path}." + (f" Did you mean {folder.parent / similar[0]}?" if similar else "")


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
        ValueError: If an option does not exist, with the nearest name, or has a value that does not exist.
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
        recipe = Path(argv[position])
        keys = yaml.safe_load(recipe.read_text())
        if not isinstance(keys, dict):
            raise ValueError(f"{recipe} is not a YAML mapping of options to values.")
        for key in keys:
            _check_option(str(key), options, f" in {recipe}")
    flags = {flag for action in parser._actions for flag in action.option_strings}
    for word in argv:
        if word.startswith("--") and word.split("=")[0] not in flags | {"--config"}:
            _check_option(word[2:].split("=")[0], options, "")
    return Recipe(*parser.parse_args_and_config(argv))


def _start_of(recipe: Recipe) -> dict[str, Any]:
    # The model that a stage starts from, as the trainer takes it
    path, init = recipe.model.model_name_or_path, recipe.args.model_init_kwargs
    if recipe.stage.adapter != "keep":
        start = path if recipe.stage.adapter is None else _merged(recipe)
        return {"model": start, "quantization_config": get_quantization_config(recipe.model)}
    recipe.args.model_init_kwargs = None  # they belong to a path
    return {
        "model": AutoPeftModelForCausalLM.from_pretrained(path, is_trainable=True, **init),
        "processing_class": AutoTokenizer.from_pretrained(path),
    }


def _merged(recipe: Recipe) -> str:
    # In a folder, so that the reference, or the base of a new adapter, can be loaded again
    folder = Path(recipe.args.output_dir, "merged")
    state = PartialState()
    with state.local_main_process_first():
        if state.is_local_main_process:
            path = recipe.model.model_name_or_path
            model = AutoPeftModelForCausalLM.from_pretrained(path, **recipe.args.model_init_kwargs)
            model.merge_and_unload().save_pretrained(folder)
            AutoTokenizer.from_pretrained(path).save_pretrained(folder)
    return str(folder)


def _check_stage(recipe: Recipe) -> None:
    path, adapter = recipe.model.model_name_or_path, recipe.stage.adapter
    has_adapter = path is not None and (Path(path) / "adapter_config.json").is_file()
    if has_adapter and adapter is None:
        raise ValueError(
            f"{path} holds a LoRA adapter. Say `adapter: merge` to train from the model that it makes, or "
            "`adapter: keep` to go on training the adapter."
        )
    if adapter is not None and not has_adapter:
        raise ValueError(f"`adapter={adapter!r}` has no effect: {path} holds no LoRA adapter. Leave it out.")
    if recipe.args.log_samples and recipe.args.eval_strategy == "no":
        raise ValueError(
            f"`log_samples={recipe.args.log_samples}` has no effect with `eval_strategy='no'`: samples are drawn at "
            "evaluations. Set `eval_strategy`, or leave it out."
        )
    if adapter not in (None, "merge", "keep"):
        raise ValueError(f"`adapter={adapter!r}` does not exist. Choose one of 'merge', 'keep'.")
    if adapter == "keep" and recipe.model.use_peft:
        raise ValueError("`adapter: keep` goes on training one adapter, and `use_peft` adds another. Leave one out.")
    if adapter == "keep" and (recipe.model.load_in_4bit or recipe.model.load_in_8bit):
        raise ValueError("`adapter: keep` with a quantised model is not supported. Merge it, and train another.")


def _check_option(name: str, options: set[str], where: str) -> None:
    if name not in options:
        similar = difflib.get_close_matches(name, options, n=1)
        hint = f" Did you mean `{similar[0]}`?" if similar else ""
        raise ValueError(f"there is no option `{name}`{where}.{hint}")


def _check_data_options(script: ScriptArguments, mixture: DatasetMixtureConfig) -> None:
    if bool(mixture.datasets) == bool(script.dataset_name):
        found = "both are given" if script.dataset_name else "neither is given"
        raise ValueError(f"the data comes from `dataset_name` or from `datasets`; {found}.")


def _load(script: ScriptArguments) -> Any:
    # A preference file on disk is named like a hub data set
    if Path(script.dataset_name).suffix in (".json", ".jsonl"):
        return load_dataset("json", data_files=script.dataset_name, streaming=script.dataset_streaming)
    return load_dataset(script.dataset_name, name=script.dataset_config, streaming=script.dataset_streaming)


def _split(rows: Any, name: str) -> Any:
    if name not in rows:
        raise ValueError(
            f"The data set has no split `{name}`, only {', '.join(rows)}. Set `dataset_train_split` and "
            "`dataset_test_split`."
        )
    return rows[name]
