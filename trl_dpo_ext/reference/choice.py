"""Choice of the reference policy, before TRL builds its trainer."""

import os
from typing import Any

from datasets import Dataset, IterableDataset

from trl_dpo_ext.data.dataset_preparation import has_ref_logps
from trl_dpo_ext.reference.fixed import check_reference_is_fixed
from trl_dpo_ext.reference.policy import (
    ADAPTER_COPY,
    ADAPTER_OFF,
    COLUMNS,
    COPY,
    EXPLICIT,
    NONE,
    SECOND_LOAD,
    START,
    check_adapter_names,
    check_adapter_start,
    is_peft_model,
)


__all__ = ["choose_reference"]


def choose_reference(
    model: Any,
    ref_model: Any,
    args: Any,
    train_dataset: Any,
    eval_dataset: Any,
    peft_config: Any,
    ref_columns: tuple[str, ...],
) -> str:
    """
    Chooses the reference policy from the arguments of a trainer.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Explicit reference.
        args ([`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`]):
            Options.
        train_dataset (`Dataset` or `IterableDataset`):
            Training dataset.
        eval_dataset (`Dataset`, `IterableDataset` or `dict`, *optional*):
            Evaluation dataset.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter that TRL will add.
        ref_columns (`tuple[str, ...]`):
            Columns of reference log-probabilities that the datasets may have.

    Returns:
        `str`: One of the kinds of [`~trl_dpo_ext.reference.policy`].

    Raises:
        ValueError: If the arguments contradict each other.
    """
    evaluation = list(eval_dataset.values()) if isinstance(eval_dataset, dict) else [eval_dataset]
    datasets = [rows for rows in [train_dataset, *evaluation] if isinstance(rows, (Dataset, IterableDataset))]
    brought = [has_ref_logps(rows, ref_columns) for rows in datasets]
    no_reference = getattr(args, "reference_free", False)
    if no_reference is None:  # objectives without a reference use one if it is given
        no_reference = ref_model is None and not any(brought)
    names = " and ".join(f"`{name}`" for name in ref_columns)
    if any(brought):
        if not all(brought):
            raise ValueError(
                f"Some datasets have the columns {names} and some do not. Add them to the training and the evaluation "
                "datasets, or remove them with `dataset.remove_columns`."
            )
        if ref_model is not None or no_reference:
            other = "`ref_model`" if ref_model is not None else "`reference_free=True`"
            raise ValueError(
                f"The columns {names} contain reference log-probabilities, which contradicts {other}. Remove the "
                f"columns, or leave {other} out."
            )
        if args.sync_ref_model:
            raise ValueError(
                f"`sync_ref_model=True` changes the reference, but the columns {names} contain fixed reference "
                "log-probabilities. Remove the columns, or set `sync_ref_model=False`."
            )
        return COLUMNS
    if no_reference:
        if ref_model is not None:
            raise ValueError("`ref_model` has no effect with `reference_free=True`. Leave one of them out.")
        return NONE
    if ref_model is not None:
        return EXPLICIT
    if peft_config is not None or is_peft_model(model):
        if is_peft_model(model):
            check_adapter_names(model)
            check_reference_is_fixed(model, None, ADAPTER_COPY)  # before PEFT raises an error of its own
        check_adapter_start(model, peft_config)
        return ADAPTER_COPY if is_peft_model(model) else ADAPTER_OFF
    sharded_later = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if args.precompute_ref_log_probs and not sharded_later:
        return START
    return SECOND_LOAD if isinstance(model, str) else COPY
