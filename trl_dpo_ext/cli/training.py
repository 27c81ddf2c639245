"""Steps of a training command: load the data, build the trainer, train, save."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets.exceptions import DatasetGenerationError
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
from trl import ScriptArguments, get_dataset, get_quantization_config

from trl_dpo_ext.cli.adapter import adapter_config
from trl_dpo_ext.cli.dry_run import dry_run
from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.recipe import Recipe
from trl_dpo_ext.data.remote_code import brings_code, remote_code_explained
from trl_dpo_ext.data.sources import load_splits, split_of
from trl_dpo_ext.models.loading import check_adapter
from trl_dpo_ext.processes import together
from trl_dpo_ext.spelling import did_you_mean_path
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer
from trl_dpo_ext.trainers.options.adapter_base import check_base, is_path, read_adapter_config
from trl_dpo_ext.trainers.options.output_folder import check_output_dir


__all__ = ["train"]

_FOLDER_OF_SPLITS = (
    "Put `train.jsonl` and `test.jsonl` into a folder and pass the folder, or choose an existing split."
)


def train(command: str, trainer_class: type[BaseDPOTrainer], recipe: Recipe) -> int:
    """
    Trains and saves, and pushes to the hub if requested.

    Args:
        command (`str`):
            Name of the command.
        trainer_class (`type`):
            Class of the trainer.
        recipe ([`~trl_dpo_ext.cli.recipe.Recipe`]):
            Options.

    Returns:
        `int`: 0, 2 for invalid options or data, or 1 if training stopped with an error.
    """
    try:
        with together():  # a file may be missing on one machine
            _check_stage(recipe)
            train_dataset, eval_dataset = _load(recipe)
            if not recipe.stage.dry_run:
                _make_output_dir(recipe.args)
        path = recipe.model.model_name_or_path
        with _folders_first(path), remote_code_explained(path, "Set `trust_remote_code=True` to run it."):
            if recipe.stage.dry_run:
                return dry_run(recipe, train_dataset)
            if brings_code(path):  # TRL loads a processor, which does not find the code
                AutoTokenizer.from_pretrained(path, trust_remote_code=recipe.args.trust_remote_code)
            trainer = _build(trainer_class, recipe, train_dataset, eval_dataset)
    except (ValueError, OSError, ImportError, NotImplementedError, DatasetGenerationError) as error:
        cause = f" ({error.__cause__})" if isinstance(error, DatasetGenerationError) else ""
        return fail(command, f"{error}{cause}")
    script, args = recipe.script, recipe.args
    try:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except (ValueError, OSError) as error:
        if not _is_ours(error):
            raise
        return fail(command, error, status=1)
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"Saved to {args.output_dir}.")
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    trainer.accelerator.wait_for_everyone()  # all processes finish saving before one exits
    trainer.accelerator.end_training()
    return 0


def _build(
    trainer_class: type[BaseDPOTrainer], recipe: Recipe, train_dataset: Any, eval_dataset: Any
) -> BaseDPOTrainer:
    args, model = recipe.args, recipe.model
    given = dict(args.model_init_kwargs or {})
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    } | given
    return trainer_class(
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=adapter_config(args, model),
        **_start_of(recipe),
    )


def _is_ours(error: BaseException) -> bool:
    # The errors of this package are written for users; other errors keep their traceback
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("trl_dpo_ext")


@contextmanager
def _folders_first(path: str) -> Iterator[None]:
    # A misspelled folder is looked up on the hub, whose message is long and does not name the folder
    try:
        yield
    except OSError as error:
        hint = did_you_mean_path(Path(path), folders=True)
        if Path(path).is_dir() or not hint:
            raise
        raise OSError(f"There is no folder {path}.{hint} As a name on the hub: {error}") from error


def _check_folder(path: str) -> None:
    folder = Path(path)
    if is_path(path) and not folder.is_dir():
        raise ValueError(f"There is no folder {path}.{did_you_mean_path(folder, folders=True)}")


def _make_output_dir(args: BaseDPOConfig) -> None:
    if not args.should_save:
        return
    folder = Path(args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"`output_dir`: {folder} cannot be created: {error.strerror}. Choose a folder with write access."
        ) from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"`output_dir`: {folder} cannot be written to. Choose a folder with write access.")


def _start_of(recipe: Recipe) -> dict[str, Any]:
    # The initial model of a stage, as the trainer accepts it
    path, init = recipe.model.model_name_or_path, recipe.args.model_init_kwargs
    trust = recipe.args.trust_remote_code
    if recipe.stage.adapter != "keep":
        start = path if recipe.stage.adapter is None else _merged(recipe)
        return {"model": start, "quantization_config": get_quantization_config(recipe.model)}
    recipe.args.model_init_kwargs = None  # they apply to a path only
    policy = AutoPeftModelForCausalLM.from_pretrained(path, is_trainable=True, **{"trust_remote_code": trust} | init)
    check_adapter(policy, path)
    return {
        "model": policy,
        "processing_class": AutoTokenizer.from_pretrained(path, trust_remote_code=trust),
    }


def _merged(recipe: Recipe) -> str:
    # Saved in a folder, so that the reference or the base of a new adapter can be loaded again
    folder = _merged_folder(recipe)
    state = PartialState()
    with state.local_main_process_first():
        if state.is_local_main_process:
            path = recipe.model.model_name_or_path
            trust = recipe.args.trust_remote_code
            init = {"trust_remote_code": trust} | recipe.args.model_init_kwargs
            model = AutoPeftModelForCausalLM.from_pretrained(path, **init)
            check_adapter(model, path)
            model.merge_and_unload().save_pretrained(folder)
            AutoTokenizer.from_pretrained(path, trust_remote_code=trust).save_pretrained(folder)
    return str(folder)


def _merged_folder(recipe: Recipe) -> Path:
    return Path(recipe.args.output_dir, "merged")


def _check_stage(recipe: Recipe) -> None:
    path, adapter = recipe.model.model_name_or_path, recipe.stage.adapter
    _check_folder(path)
    has_adapter = (Path(path) / "adapter_config.json").is_file()
    if has_adapter and adapter is None:
        raise ValueError(
            f"{path} contains a LoRA adapter. Set `adapter: merge` to train the merged model, or `adapter: keep` to "
            "continue training the adapter."
        )
    if adapter is not None and not has_adapter:
        raise ValueError(f"`adapter={adapter!r}` has no effect: {path} has no LoRA adapter. Leave it out.")
    if recipe.args.log_samples and recipe.args.eval_strategy == "no":
        raise ValueError(
            f"`log_samples={recipe.args.log_samples}` has no effect with `eval_strategy='no'`, because samples are "
            "generated in evaluations. Set `eval_strategy`, or leave it out."
        )
    if adapter not in (None, "merge", "keep"):
        raise ValueError(f"`adapter={adapter!r}` does not exist. Choose one of 'merge', 'keep'.")
    if adapter == "keep" and recipe.model.use_peft:
        raise ValueError(
            "`adapter: keep` continues training an adapter, but `use_peft` adds another one. Leave one of them out, "
            "or pass `--use_peft false` if the recipe sets it."
        )
    if adapter == "keep" and (recipe.model.load_in_4bit or recipe.model.load_in_8bit):
        raise ValueError("`adapter: keep` does not support quantized models. Merge the adapter and train a new one.")
    base = read_adapter_config(path).get("base_model_name_or_path") if has_adapter else None
    rows = {f"rows of `{name}`": name for name in _data_of(recipe)}
    sources = {"the model": path, "the adapter's base model": base} | rows
    check_output_dir(recipe.args.output_dir, sources)
    if adapter == "merge":
        check_output_dir(_merged_folder(recipe), sources)
    if has_adapter:
        check_base(path, base)


def _data_of(recipe: Recipe) -> list[str]:
    # Files and folders of the rows, or their names on the hub
    found = [recipe.script.dataset_name]
    for source in recipe.mixture.datasets:
        files = source.data_files if isinstance(source.data_files, list) else [source.data_files]
        found += [source.path, source.data_dir, *files]
    return [name for name in found if isinstance(name, str)]


def _load(recipe: Recipe) -> tuple[Any, Any]:
    # Returns the training dataset, and the evaluation dataset or `None`
    script = recipe.script
    if recipe.mixture.datasets:
        splits = get_dataset(recipe.mixture)
    else:
        splits = load_splits(
            script.dataset_name,
            option="dataset_name",
            dataset_config=script.dataset_config,
            streaming=script.dataset_streaming,
        )
    evaluates = recipe.args.eval_strategy != "no"
    return (
        _split(splits, script, "dataset_train_split"),
        _split(splits, script, "dataset_test_split") if evaluates else None,
    )


def _split(splits: Any, script: ScriptArguments, option: str) -> Any:
    name = script.dataset_name or "the mixture in `datasets`"
    is_held_out_of_file = option == "dataset_test_split" and Path(name).is_file()
    fix = _FOLDER_OF_SPLITS if is_held_out_of_file else ""
    return split_of(splits, name, getattr(script, option), option=option, fix=fix)
