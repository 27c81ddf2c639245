"""Reference log-probabilities of a dataset, computed once before training and stored in a file."""

from typing import Any

import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from trl_dpo_ext.compat import prepare_deepspeed
from trl_dpo_ext.reference.cache import CacheKey, RefLogpsFile, hash_token_ids
from trl_dpo_ext.reference.cached_pass import reference_pass
from trl_dpo_ext.reference.start_check import reward_tolerance
from trl_dpo_ext.trainers.forward.precision import compute_dtype, lowered_precision


__all__ = ["cached_ref_logps"]


def cached_ref_logps(trainer: Any, dataset: Dataset, name: str, batch_size: int) -> Tensor:
    """
    Returns a trainer's reference log-probabilities of all rows, using its cache.

    Args:
        trainer ([`~trl_dpo_ext.trainers.base_trainer.BaseDPOTrainer`]):
            Trainer, before training.
        dataset (`Dataset`):
            Tokenized rows.
        name (`str`):
            Name of the dataset in messages.
        batch_size (`int`):
            Rows per process and batch.

    Returns:
        `torch.Tensor` of shape `(n, K)`, in nats.
    """
    accelerator = trainer.accelerator
    model = _model_before_training(trainer)
    reference = accelerator.unwrap_model(model)
    dtype = f"{reference.dtype} under {lowered_precision(accelerator)} autocast"
    tokens = hash_token_ids(dataset, trainer.token_columns)
    key = CacheKey(trainer.reference.hash_of(trainer.model), tokens, dtype, trainer.ld_alpha)

    def logps_of(collated: dict[str, Any]) -> Tensor:
        logps, _ = trainer.run_reference(model, trainer.read_batch(collated))
        return F.pad(logps, (0, trainer.largest - logps.size(1)))  # same width for all batches

    training = model.training
    model.eval()
    logps = reference_pass(
        dataset,
        logps_of=logps_of,
        collate=trainer.data_collator,
        to_device=trainer._prepare_inputs,
        tolerance_of=lambda logps: reward_tolerance(logps, 1.0, compute_dtype(accelerator, reference)),
        accelerator=accelerator,
        batch_size=batch_size,
        file=RefLogpsFile(trainer.args.default_cache_dir(), key),
        name=name,
    )
    model.train(training)
    return logps


def _model_before_training(trainer: Any) -> nn.Module:
    if trainer.ref_model is not None:
        return trainer.ref_model
    if trainer.is_deepspeed_enabled and trainer._precompute_engine is None:
        # As in TRL: before training the weights are still on the CPU, and sharded with ZeRO-3
        trainer._precompute_engine = prepare_deepspeed(trainer.model, trainer.accelerator)
    return trainer.model if trainer._precompute_engine is None else trainer._precompute_engine
