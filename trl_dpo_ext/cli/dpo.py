"""`trl-dpo-ext dpo`: DPOPaperTrainer from a recipe, with the keys of `trl dpo`, read strictly."""

import difflib
import sys
from pathlib import Path
from typing import Any

import yaml
from datasets import load_dataset
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer


__all__ = ["parse", "run"]


def run(argv: list[str]) -> int:
    """
    Trains, saves, and pushes if asked to.

    Args:
        argv (`list[str]`):
            `--config recipe.yaml` and/or `--option value`; the command line wins.

    Returns:
        `int`: 0, or 2 for an option that does not exist or has a wrong value.
    """
    try:
        script, args, model, mixture = parse(argv)
        _check_data_options(script, mixture)
    except (ValueError, OSError) as error:
        print(f"trl-dpo-ext dpo: {error}", file=sys.stderr)
        return 2

    given = dict(args.model_init_kwargs or {})
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    } | given
    rows = get_dataset(mixture) if mixture.datasets else _load(script)
    trainer = DPOPaperTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=_split(rows, script.dataset_train_split),
        eval_dataset=None if args.eval_strategy == "no" else _split(rows, script.dataset_test_split),
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"Saved to {args.output_dir}.")
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    trainer.accelerator.end_training()
    return 0


def parse(argv: list[str]) -> tuple[ScriptArguments, DPOPaperConfig, ModelConfig, DatasetMixtureConfig]:
    """
    Reads a recipe and the command line strictly.

    Args:
        argv (`list[str]`):
            Words after `dpo`.

    Returns:
        `tuple`: Options of the script, the trainer, the model and the data mixture.

    Raises:
        ValueError: If an option does not exist, with the nearest name, or has a value that does not exist.
        OSError: If the recipe cannot be read.
    """
    parser = TrlParser(
        (ScriptArguments, DPOPaperConfig, ModelConfig, DatasetMixtureConfig),
        prog="trl-dpo-ext dpo",
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
    return parser.parse_args_and_config(argv)


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
