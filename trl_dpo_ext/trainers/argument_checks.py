"""Checks and conversions of a trainer's arguments."""

from typing import Any, TypeVar

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from torch import nn
from trl import DPOConfig

from trl_dpo_ext.compat import get_config_model_id
from trl_dpo_ext.data.columns import holds_images, opened
from trl_dpo_ext.models.limits import check_is_causal_lm
from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.shared_prompt import paths
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.options.output_folder import check_overwrites_nothing


__all__ = [
    "SAMPLED_BY_LENGTH",
    "check_attention",
    "check_data_loading",
    "check_is_evaluation_set",
    "check_reference_model",
    "check_trainable",
    "checked_arguments",
    "config_from",
    "datasets_by_name",
    "has_images",
    "opened_sets",
]

logger = get_logger(__name__)

# Values of `train_sampling_strategy` that need the lengths of rows
SAMPLED_BY_LENGTH = ("group_by_length", "batch_rebalance")

Config = TypeVar("Config", bound=BaseDPOConfig)


def checked_arguments(
    trainer: Any, model: Any, ref_model: Any, args: DPOConfig | None, train_dataset: Any, eval_dataset: Any
) -> tuple[Any, Any, Any]:
    """
    Checks a trainer's arguments before anything is loaded.

    Args:
        trainer (`type`):
            Class of the trainer.
        model (`str` or [`~transformers.PreTrainedModel`]):
            Policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference.
        args (`trl.DPOConfig`, *optional*):
            Options.
        train_dataset (`Dataset` or `IterableDataset`):
            Training dataset.
        eval_dataset (`Dataset`, `IterableDataset` or `dict`, *optional*):
            Evaluation dataset.

    Returns:
        `tuple`: Options of the trainer's `config_class`, and the datasets in their own format.

    Raises:
        ValueError: If an argument is invalid.
        TypeError: If an argument has a type that is not supported.
    """
    args = config_from(args, model, trainer.config_class, trainer._name)
    # Non-finite losses are errors here. The filter would replace them by an average, with one synchronization per
    # micro-batch
    args.logging_nan_inf_filter = False
    train_dataset, eval_dataset = opened_sets(train_dataset, eval_dataset)
    check_data_loading(args, train_dataset, eval_dataset)
    check_reference_model(ref_model)
    check_overwrites_nothing(args, model, ref_model, train_dataset)
    for given in (model, ref_model):  # a path is checked when TRL has loaded it
        if isinstance(given, nn.Module):
            check_is_causal_lm(given)
    if not trainer.takes_images and has_images(train_dataset):
        raise ValueError(f"`{trainer.__name__}` does not support images. Use `DPOPaperTrainer` with pairs.")
    return args, train_dataset, eval_dataset


def config_from(args: DPOConfig | None, model: Any, config_class: type[Config], method: str) -> Config:
    """
    Returns the options of a trainer.

    Args:
        args (`trl.DPOConfig`, *optional*):
            Options passed by the user. TRL's own config keeps its values.
        model (`str` or [`~transformers.PreTrainedModel`]):
            Policy, whose name is used for the default output folder.
        config_class (`type`):
            Config class of the trainer.
        method (`str`):
            Short name of the method, for the default output folder.

    Returns:
        An instance of `config_class`.

    Raises:
        TypeError: If `args` is not a config of TRL or this package.
    """
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        return config_class(f"{name.rstrip('/').split('/')[-1]}-{method}")
    if isinstance(args, config_class):
        return args
    if not isinstance(args, DPOConfig):
        raise TypeError(
            f"`args` is a `{type(args).__name__}`, but a `{config_class.__name__}` or a `trl.DPOConfig` is expected."
        )
    logger.warning_once(
        f"A `{type(args).__name__}` keeps TRL's values instead of the paper's. For the paper's settings, use "
        f"`{config_class.__name__}`."
    )
    return config_class.from_trl(args)


def check_reference_model(ref_model: Any) -> None:
    """
    Checks that an explicit reference is a model that TRL's fused LM head supports.

    Raises:
        TypeError: If it is not a model, for example a path.
        ValueError: If it is a PEFT model.
    """
    if ref_model is not None and not isinstance(ref_model, nn.Module):
        raise TypeError(
            f"`ref_model` is a `{type(ref_model).__name__}`, but a loaded model is expected. Load it with "
            "`from_pretrained`, or leave it out to use a copy of the initial policy."
        )
    if ref_model is not None and is_peft_model(ref_model):
        raise ValueError(
            f"`ref_model` is a PEFT model (`{type(ref_model).__name__}`), but TRL's fused LM head needs a model "
            "without adapters. Pass `ref_model.merge_and_unload()`, or leave it out: the default reference of a "
            "policy with an adapter is a copy of this adapter at the start of training."
        )


def check_is_evaluation_set(name: Any, eval_dataset: Any) -> None:
    """
    Checks that a name, if rows are given by one, is that of an evaluation set.

    Raises:
        ValueError: If it is not.
    """
    names = list(eval_dataset) if isinstance(eval_dataset, dict) else []
    if isinstance(name, str) and name not in names:
        fix = f"Pass one of {', '.join(map(repr, names))}." if names else "`eval_dataset` has no names. Pass rows."
        raise ValueError(f"There is no evaluation set {name!r}. {fix}")


def check_data_loading(args: BaseDPOConfig, train_dataset: Any, eval_dataset: Any) -> None:
    """
    Checks that the datasets have rows, and that batches are not split between processes.

    Raises:
        ValueError: If a dataset is empty, or accelerate would split stacked rows to dispatch them (for streaming
            datasets, TRL disables that itself).
    """
    for name, rows in datasets_by_name(train_dataset, eval_dataset).items():
        if isinstance(rows, (Dataset, IterableDataset)) and next(iter(rows), None) is None:
            raise ValueError(f"The {name} dataset has no rows.")
    if args.world_size == 1:
        return
    if args.train_sampling_strategy == "batch_rebalance":
        raise ValueError(
            "`train_sampling_strategy='batch_rebalance'` gives the processes batches of different sizes, which an "
            "update cannot weight by example. Use 'group_by_length'."
        )
    if args.accelerator_config.dispatch_batches and isinstance(train_dataset, Dataset):
        raise ValueError(
            "`dispatch_batches=True` splits a batch of stacked rows (all chosen, then all rejected) in the wrong "
            "place. Leave it out of `accelerator_config`."
        )
    if args.accelerator_config.split_batches:
        raise ValueError(
            "`split_batches=True` makes `per_device_train_batch_size` the batch size of all processes, which "
            "contradicts `global_batch_size`. Leave it out of `accelerator_config`, and set `global_batch_size`."
        )


def check_attention(attention: str | None, compute_dtype: torch.dtype) -> None:
    """
    Checks that the attention implementation supports the precision of the forward pass.

    Raises:
        ValueError: For FlashAttention in float32.
    """
    if "flash" in (attention or "") and compute_dtype not in paths.HALF:
        raise ValueError(
            f"`attn_implementation={attention!r}` does not run in {str(compute_dtype).removeprefix('torch.')}. Set "
            "`bf16=True`, or use `attn_implementation='sdpa'`."
        )


def check_trainable(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """
    Checks that an update changes a parameter.

    Raises:
        ValueError: If no parameter requires a gradient, or the user's `optimizer` has none that does.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        if is_peft_model(model):
            fix = "Load its adapter with `PeftModel.from_pretrained(model, folder, is_trainable=True)`."
        else:
            fix = "Unfreeze parameters with `requires_grad_(True)`, or pass `peft_config`."
        raise ValueError(f"No parameter of the model requires a gradient, so there is nothing to train. {fix}")
    if optimizer is None or isinstance(optimizer, AcceleratedOptimizer):  # the latter in a second training
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held.isdisjoint(map(id, trained)):
        raise ValueError(
            "The optimizer in `optimizers` has no trainable parameter of the model, so there is nothing to train. "
            "Build it from the parameters of the instance that is passed as `model` (an adapter has parameters only "
            "after `get_peft_model`)."
        )


def has_images(dataset: Any) -> bool:
    """Whether a dataset has images."""
    return isinstance(dataset, (Dataset, IterableDataset)) and bool(holds_images(dataset))


def datasets_by_name(train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
    """Returns the datasets of a trainer by their names in messages: `train`, and `eval` or the keys of a dict."""
    evaluation = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    return {"train": train_dataset, **evaluation}


def opened_sets(train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
    """Returns the training and evaluation datasets (or a dict) in the form that preparation reads, see [`opened`]."""
    if isinstance(eval_dataset, dict):
        evaluation = {name: opened(rows, name) for name, rows in eval_dataset.items()}
    else:
        evaluation = opened(eval_dataset, "eval")
    return opened(train_dataset, "train"), evaluation
