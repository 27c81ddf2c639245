"""Dry run of a training: its options, batches and memory, and the doctor's report on its data."""

from dataclasses import fields
from typing import Any

import yaml
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer

from trl_dpo_ext.cli.memory import estimate_memory
from trl_dpo_ext.cli.recipe import Recipe
from trl_dpo_ext.data.checks import check_columns
from trl_dpo_ext.data.doctor.examination import examine
from trl_dpo_ext.data.options import preparation_options
from trl_dpo_ext.models.limits import Limits, check_pad_token, limits_of
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.options.adapter_base import read_adapter_config
from trl_dpo_ext.trainers.options.secrets import without_secrets


__all__ = ["dry_run"]

_STREAMED = 1000  # examined rows of a streaming dataset


def dry_run(recipe: Recipe, train: Dataset | IterableDataset) -> int:
    """
    Prints what a training would do, without training.

    Args:
        recipe ([`~trl_dpo_ext.cli.recipe.Recipe`]):
            Options of the recipe and the command line.
        train (`Dataset` or `IterableDataset`):
            Training dataset.

    Returns:
        `int`: 0 if training would accept every row, else 1.

    Raises:
        ValueError: If the model is not a causal language model, or does not accept the rows.
    """
    if not PartialState().is_main_process:
        return 0
    args, model = recipe.args, recipe.model
    if isinstance(train, IterableDataset):
        train = Dataset.from_list(list(train.take(_STREAMED)), on_mixed_types="use_json")
        print(f"The dataset is streamed. Only its first {len(train)} rows are examined.")
    print("Options that differ from their defaults:\n")
    print(yaml.safe_dump(without_secrets(_changed(args) | _changed(model)), sort_keys=False))
    print(_batches(args, len(train)))
    limits = _limits(recipe)
    tokens, adapter = _tokens(args, train), recipe.stage.adapter
    print(f"Memory: {estimate_memory(args, model, _reference_in_memory(recipe), tokens, adapter)}.\n")
    options = preparation_options(args)
    if "score_tie_gap" not in options and {"completions", "completion_ids"}.intersection(train.column_names):
        check_columns(train.column_names, "train")  # a trainer of pairs
    tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path, trust_remote_code=args.trust_remote_code)
    check_pad_token(tokenizer, limits)
    report = examine(train, tokenizer, **options)
    limits.check_extent(report.extent, args.max_length, "The train dataset")
    print(report)
    return 0 if report.healthy else 1


def _limits(recipe: Recipe) -> Limits:
    path, trust = recipe.model.model_name_or_path, recipe.args.trust_remote_code
    base = path if recipe.stage.adapter is None else read_adapter_config(path)["base_model_name_or_path"]
    return limits_of(base, recipe.model.model_revision, trust)


def _changed(options: Any) -> dict[str, Any]:
    found = {}
    for option in fields(options):
        default = option.default_factory() if callable(option.default_factory) else option.default
        value = getattr(options, option.name)
        if option.init and value != default and isinstance(value, (str, int, float, bool, list, dict)):
            found[option.name] = value.value if hasattr(value, "value") else value
    return found


def _batches(args: BaseDPOConfig, rows: int) -> str:
    per_device, accumulation, ranks = (
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        args.data_parallel_ranks,
    )
    size = per_device * accumulation * ranks
    updates = args.max_steps if args.max_steps > 0 else int(-(-rows // size) * args.num_train_epochs)
    return (
        f"Batches: {size} rows an update = {per_device} x {accumulation} x {ranks} (per device x accumulation x "
        f"ranks); {rows:,} rows, {updates:,} updates, {args.get_warmup_steps(updates):,} of warm-up."
    )


def _tokens(args: BaseDPOConfig, train: Dataset) -> int:
    columns = train.column_names
    lists = next((name for name in ("completions", "completion_ids") if name in columns), None)
    sizes = [len(row) for row in train[lists] if isinstance(row, list)] if lists else []  # other rows: see the report
    completions = max(sizes, default=2)
    return args.per_device_train_batch_size * completions * (args.max_length or 1024)


def _reference_in_memory(recipe: Any) -> bool:
    args = recipe.args
    adapter = recipe.model.use_peft or recipe.stage.adapter == "keep"
    without = getattr(args, "reference_free", False) is not False
    return not (adapter or without or args.precompute_ref_log_probs)
