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
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.options.output_folder import check_overwrites_nothing


__all__ = [
    "SAMPLED_BY_LENGTH",
    "check_attention",
    "check_data_loading",
    "check_reference_model",
    "check_trainable",
    "checked_arguments",
    "config_from",
    "datasets_by_name",
    "has_images",
    "opened_sets",
]

logger = get_logger(__name__)

# Values of `train_sampling_strategy` that need the rows' lengths
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
            Training rows.
        eval_dataset (`Dataset`, `IterableDataset` or `dict`, *optional*):
            Rows to evaluate on.

    Returns:
        `tuple`: Options of the trainer's `config_class`, and the data sets, as what they hold.

    Raises:
        ValueError: If one cannot be trained with.
        TypeError: If one is of a type that is not taken.
    """
    args = config_from(args, model, trainer.config_class, trainer._name)
    # A non-finite loss is an error here; the filter would replace it by an average, at one synchronization a
    # micro-batch
    args.logging_nan_inf_filter = False
    train_dataset, eval_dataset = opened_sets(train_dataset, eval_dataset)
    check_data_loading(args, train_dataset, eval_dataset)
    check_reference_model(ref_model)
    check_overwrites_nothing(args, model, ref_model, train_dataset)
    for given in (model, ref_model):  # one that TRL loads is checked as soon as it has
        if isinstance(given, nn.Module):
            check_is_causal_lm(given)
    if not trainer.takes_images and has_images(train_dataset):
        raise ValueError(f"`{trainer.__name__}` takes no images. Use `DPOPaperTrainer` with pairs.")
    return args, train_dataset, eval_dataset


def config_from(args: DPOConfig | None, model: Any, config_class: type[Config], method: str) -> Config:
    """
    Returns the options a trainer works with.

    Args:
        args (`trl.DPOConfig`, *optional*):
            As passed by the user; TRL's own config keeps its values.
        model (`str` or [`~transformers.PreTrainedModel`]):
            Policy, whose name the default output folder takes.
        config_class (`type`):
            Config of the trainer.
        method (`str`):
            Short name of the method, for the default output folder.

    Returns:
        An instance of `config_class`.

    Raises:
        TypeError: If `args` is no config of TRL's or this package's.
    """
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        return config_class(f"{name.rstrip('/').split('/')[-1]}-{method}")
    if isinstance(args, config_class):
        return args
    if not isinstance(args, DPOConfig):
        raise TypeError(
            f"`args` is a `{type(args).__name__}`; expected a `{config_class.__name__}` or a `trl.DPOConfig`."
        )
    logger.warning_once(
        f"A `{type(args).__name__}` keeps its values, which are TRL's and not the paper's. The paper's settings come "
        f"with `{config_class.__name__}`."
    )
    return config_class.from_trl(args)


def check_reference_model(ref_model: Any) -> None:
    """
    Checks that an explicit reference is a model that TRL's fused LM head takes.

    Raises:
        TypeError: If it is something else, such as a path.
        ValueError: If it is a PEFT model.
    """
    if ref_model is not None and not isinstance(ref_model, nn.Module):
        raise TypeError(
            f"`ref_model` is a `{type(ref_model).__name__}`; expected a loaded model. Load it with `from_pretrained`, "
            "or leave it out to train against the policy as it starts."
        )
    if ref_model is not None and is_peft_model(ref_model):
        raise ValueError(
            f"`ref_model` is a PEFT model (`{type(ref_model).__name__}`), and TRL's fused LM head takes models "
            "without an adapter. Pass `ref_model.merge_and_unload()`, or leave it out: the reference of a policy "
            "with an adapter is that adapter as training starts."
        )


def check_data_loading(args: BaseDPOConfig, train_dataset: Any, eval_dataset: Any) -> None:
    """
    Checks that there are rows, and that batches reach the processes whole.

    Raises:
        ValueError: If a data set is empty, or accelerate would cut stacked rows to dispatch them (for a stream TRL
            switches that off itself).
    """
    for name, rows in datasets_by_name(train_dataset, eval_dataset).items():
        if isinstance(rows, (Dataset, IterableDataset)) and next(iter(rows), None) is None:
            raise ValueError(f"The {name} dataset has no rows.")
    if args.world_size == 1:
        return
    if args.train_sampling_strategy == "batch_rebalance":
        raise ValueError(
            "`train_sampling_strategy='batch_rebalance'` gives the processes batches of unequal size, which an update "
            "cannot weigh by example. Use 'group_by_length'."
        )
    if args.accelerator_config.dispatch_batches and isinstance(train_dataset, Dataset):
        raise ValueError(
            "`dispatch_batches=True` cuts a batch of stacked rows (all chosen, then all rejected) in the wrong place. "
            "Leave it out of `accelerator_config`."
        )
    if args.accelerator_config.split_batches:
        raise ValueError(
            "`split_batches=True` makes `per_device_train_batch_size` the batch of all processes, which contradicts "
            "the batch arithmetic. Leave it out of `accelerator_config`, and set `global_batch_size`."
        )


def check_attention(attention: str | None, compute_dtype: torch.dtype) -> None:
    """
    Checks that the attention implementation runs in the precision of the forward.

    Raises:
        ValueError: For FlashAttention in float32.
    """
    if "flash" in (attention or "") and compute_dtype == torch.float32:
        raise ValueError(
            f"`attn_implementation={attention!r}` does not run in float32. Set `bf16=True`, or use "
            "`attn_implementation='sdpa'`."
        )


def check_trainable(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """
    Checks that an update would change a parameter.

    Raises:
        ValueError: If none requires a gradient, or `optimizer` (the user's) holds none that does.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        if is_peft_model(model):
            fix = "Load its adapter with `PeftModel.from_pretrained(model, folder, is_trainable=True)`."
        else:
            fix = "Unfreeze what is to be trained with `requires_grad_(True)`, or pass `peft_config`."
        raise ValueError(f"No parameter of the model requires a gradient, so there is nothing to train. {fix}")
    if optimizer is None or isinstance(optimizer, AcceleratedOptimizer):  # the latter's, in a second training
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held.isdisjoint(map(id, trained)):
        raise ValueError(
            "The optimizer in `optimizers` holds none of the parameters that the model trains, so there is nothing to "
            "train. Make it of the parameters of the instance that is passed as `model` (an adapter's exist once "
            "`get_peft_model` has added them)."
        )


def has_images(dataset: Any) -> bool:
    """Whether rows hold images."""
    return isinstance(dataset, (Dataset, IterableDataset)) and bool(holds_images(dataset))


def datasets_by_name(train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
    """The datasets of a trainer, by the names that messages give them: `train`, and `eval` or the keys of a dict."""
    evaluation = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    return {"train": train_dataset, **evaluation}


def opened_sets(train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
    """Training and evaluation rows (or a dict of them) as preparation reads them, see [`opened`]."""
    if isinstance(eval_dataset, dict):
        evaluation = {name: opened(rows, name) for name, rows in eval_dataset.items()}
    else:
        evaluation = opened(eval_dataset, "eval")
    return opened(train_dataset, "train"), evaluation
