"""The reference policy of a trainer, and its log-probabilities: computed, from columns or cached."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from torch import Tensor, nn

from trl_dpo_ext.batches import Batch
from trl_dpo_ext.processes import worst_of_all_processes
from trl_dpo_ext.reference import policy as reference_policy
from trl_dpo_ext.reference.choice import choose_reference
from trl_dpo_ext.reference.fixed import movement
from trl_dpo_ext.reference.weights_hash import hash_weights
from trl_dpo_ext.shared_prompt.support import noise_in
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.forward.precision import compute_dtype


__all__ = ["Reference"]

# References that may differ from the policy at the start of training
_MAY_DIFFER = (reference_policy.NONE, reference_policy.COLUMNS, reference_policy.EXPLICIT)


class Reference:
    """
    The reference policy of a trainer.

    Args:
        kind (`str`):
            Kind of reference, one of [`~trl_dpo_ext.reference.policy`].
        columns (`tuple[str]`):
            Columns of a dataset with its log-probabilities.
        run (`Callable`):
            Runs a model on a batch. Returns log-probabilities `(B, K)`, and of each token `(B, K, T - 1)`, in nats.
        weights_hash (`str`, *optional*):
            Hash of its weights, if it is a separate model.
    """

    def __init__(
        self,
        kind: str,
        columns: tuple[str, ...],
        run: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]],
        weights_hash: str | None = None,
    ):
        self.kind = kind
        self.columns = columns
        self.is_cached = False
        self._run = run
        self._hash = weights_hash
        # A batch of the first update, and its log-probabilities
        self._first: tuple[Batch, Tensor] | None = None

    @classmethod
    def of_arguments(
        cls,
        model: Any,
        ref_model: Any,
        args: BaseDPOConfig,
        train_dataset: Any,
        eval_dataset: Any,
        peft_config: Any,
        columns: tuple[str, ...],
        run: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]],
    ) -> tuple["Reference", Any]:
        """Chooses the reference from the arguments of a trainer. Also returns the `ref_model` for TRL."""
        kind = choose_reference(model, ref_model, args, train_dataset, eval_dataset, peft_config, columns)
        own = ref_model is not None and ref_model is not model
        reference = cls(kind, columns, run, hash_weights(ref_model, with_adapters=True) if own else None)
        if kind == reference_policy.COPY:
            ref_model = reference_policy.copy_in_memory(model)
        reference_policy.forget_ref_adapter(model)
        return reference, ref_model if reference.has_model else reference_policy.NoReference()

    @property
    def has_model(self) -> bool:
        """Whether there is a model to run, at least before training."""
        return self.kind not in (reference_policy.NONE, reference_policy.COLUMNS)

    @property
    def description(self) -> str:
        """Description of the reference for messages."""
        return self.kind + (", cached" if self.is_cached else "")

    def hash_of(self, policy: nn.Module) -> str | None:
        """Hash of the reference's weights, which are in the policy before training. `None` without a reference."""
        if self._hash is None and self.kind not in _MAY_DIFFER:
            # Computed once, before training changes the weights or accelerate shards them
            self._hash = hash_weights(policy)
        return self._hash

    def is_start_of(self, policy: nn.Module, args: BaseDPOConfig) -> bool:
        """Whether the reference is the policy at the start of training, so that the first rewards are 0."""
        prompt_learning = is_peft_model(policy) and any(
            config.is_prompt_learning for config in policy.peft_config.values()
        )
        return self.kind not in _MAY_DIFFER and not prompt_learning and args.neftune_noise_alpha is None

    def start_training(self) -> None:
        """Makes [`check_has_not_moved`] check the training that starts."""
        self._first = None

    def logps(
        self, batch: Batch, policy: nn.Module, ref_model: nn.Module | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """
        Returns the log-probabilities of a batch, from its columns or computed.

        Returns:
            `tuple`: `(B, K)`, or `None` without a reference, and of each token `(B, K, T - 1)`, or `None` if only
            sums are known.

        Raises:
            ValueError: If the batch has no such columns, and no reference model is in memory.
        """
        if self.kind == reference_policy.NONE:
            return None, None
        if batch.ref_logps is not None:
            return batch.ref_logps, None
        if self.kind == reference_policy.COLUMNS or (ref_model is None and not is_peft_model(policy)):
            raise ValueError(
                f"The batch has no {' and '.join(f'`{name}`' for name in self.columns)}, and no reference model "
                f"is in memory (reference: {self.description}). Add these columns to every dataset. A custom "
                "`data_collator` must keep them."
            )
        found = self._run(policy if ref_model is None else ref_model, batch)
        if self._first is None and policy.training:
            self._first = batch, found[0]
        return found

    def check_has_not_moved(self, policy: nn.Module, ref_model: nn.Module | None, accelerator: Accelerator) -> None:
        """
        Computes a batch of the first update again, and compares the log-probabilities.

        Raises:
            ValueError: If they have changed.
        """
        # One forward pass, which works with any sharding. Dropout is disabled, because its noise would hide changes
        if self._first is None or noise_in(policy) is not None:
            return
        model = policy if ref_model is None else ref_model
        batch, before = self._first
        self._first = None
        after, _ = self._run(model, batch)
        is_float32 = compute_dtype(accelerator, accelerator.unwrap_model(model)) == torch.float32
        gap, tolerance = worst_of_all_processes(accelerator, torch.stack(movement(before, after, is_float32)))
        if gap > tolerance:
            raise ValueError(
                f"The reference policy changed during training: its log-probabilities of the first batch differ by "
                f"{gap:.3g} nats from those at the start, so rewards and gradients are wrong. Do not train weights of "
                "the reference, or pass a separate model as `ref_model=`."
            )

    def check_is_in_memory(self, policy: nn.Module, ref_model: nn.Module | None, step: int) -> None:
        """
        Checks that a cached reference can still be run for new rows.

        Raises:
            ValueError: If the reference was the policy before training.
        """
        if ref_model is None and not is_peft_model(policy) and step > 0:
            raise ValueError(
                "`predict` cannot compute reference log-probabilities of new rows after training, because with "
                "`precompute_ref_log_probs=True` and no `ref_model` the reference was the policy before training. "
                "Pass `ref_model`, or set `precompute_ref_log_probs=False`."
            )
