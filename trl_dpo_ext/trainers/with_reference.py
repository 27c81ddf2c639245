"""The reference policy of a trainer: its log-probabilities live, from columns or cached, and its identity."""

from functools import partial
from typing import Any, ClassVar

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import TrainOutput

from trl_dpo_ext.compat import prepare_deepspeed
from trl_dpo_ext.data.checks import REF_LOGPS_COLUMNS, TOKENIZED_COLUMNS
from trl_dpo_ext.data.preparation import has_ref_logps
from trl_dpo_ext.reference import policy as reference_policy
from trl_dpo_ext.reference.cache import CacheKey, RefLogpsFile, hash_token_ids
from trl_dpo_ext.reference.cached_pass import reference_pass
from trl_dpo_ext.reference.fixed import check_reference_is_fixed, movement
from trl_dpo_ext.reference.identity import hash_weights
from trl_dpo_ext.reference.start_check import reward_tolerance
from trl_dpo_ext.rewards import implicit_rewards
from trl_dpo_ext.shared_prompt.support import noise_in
from trl_dpo_ext.trainers.update_guard import UpdateGuard
from trl_dpo_ext.trainers.with_groups import WithGroups


__all__ = ["WithReference"]

# References that need not be where training starts
_MAY_DIFFER = (reference_policy.NONE, reference_policy.COLUMNS, reference_policy.EXPLICIT)


class WithReference(WithGroups):
    """A trainer that knows what its reference is (`reference_kind`) and where its log-probabilities come from."""

    beta: float
    reference_kind: str
    _guard: UpdateGuard
    _reference_hash: str | None
    # A batch of the first update, and its reference log-probabilities
    _first_batch: tuple[dict[str, Any], Tensor] | None = None

    # Columns of tokenised rows, and of reference log-probabilities
    token_columns: ClassVar[tuple[str, ...]] = TOKENIZED_COLUMNS
    ref_columns: ClassVar[tuple[str, ...]] = REF_LOGPS_COLUMNS

    def run_reference(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Runs the reference on a batch: log-probabilities `(B, 2)`, and those of each token `(2B, T - 1)`."""
        inputs = self.with_groups(inputs)
        rows = self.model_inputs(inputs)
        seen: list[Tensor] = []

        def recorded(**kwargs: Any) -> Any:
            outputs = model(**kwargs)
            seen.append(outputs.log_probs)  # TRL returns their sums alone
            return outputs

        logps = torch.cat(self.compute_ref_log_probs(recorded, rows))  # in two halves, whatever the rows are
        return self.to_rows(logps, inputs), seen[0][:, -(rows["input_ids"].size(1) - 1) :]

    def run_reference_to_cache(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Log-probabilities of a batch as the cache keeps them, as wide for every batch."""
        return self.run_reference(model, inputs)[0]

    def reference_logps(self, inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """
        Reference log-probabilities of a batch: from its columns if it has them, else live.

        Returns:
            `tuple`: `(B, 2)`, `None` without a reference; and those of each token, `None` where only sums are known.
        """
        if self.reference_kind == reference_policy.NONE:
            return None, None
        if all(name in inputs for name in self.ref_columns):
            columns = [inputs[name] for name in self.ref_columns]
            return columns[0] if columns[0].dim() == 2 else torch.stack(columns, dim=1), None
        lives = self.ref_model is not None or is_peft_model(self.model)
        if self.reference_kind == reference_policy.COLUMNS or not lives:
            raise ValueError(
                f"The batch has no {' and '.join(f'`{name}`' for name in self.ref_columns)}, and no reference model "
                f"is in memory (reference: {self.reference_description}). Bring these columns for every data set, and "
                "let a `data_collator` of your own pass them on."
            )
        found = self.run_reference(self.model if self.ref_model is None else self.ref_model, inputs)
        if self._first_batch is None and self.model.training:
            self._first_batch = dict(inputs), found[0]
        return found

    def group_forwards(self) -> None:
        # As soon as TRL has built the policy, and before anything is run
        if not self._forwards_are_ready:
            if self.reference_kind == reference_policy.ADAPTER_COPY:
                reference_policy.copy_to_ref_adapter(self.model)
            check_reference_is_fixed(self.model, self.ref_model, self.reference_kind)
        super().group_forwards()

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None) -> TrainOutput:
        self._first_batch = None
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._check_reference_stayed()
        return output

    def _check_reference_stayed(self) -> None:
        # One forward, so that it works whatever the weights are sharded over. Noise of dropout would hide the answer
        if self._first_batch is None or self.args.sync_ref_model or noise_in(self.model) is not None:
            return
        inputs, before = self._first_batch
        self._first_batch = None
        with torch.no_grad(), self.compute_loss_context_manager():
            after, _ = self.run_reference(self.model if self.ref_model is None else self.ref_model, inputs)
        is_float32 = self.compute_dtype(self.accelerator.unwrap_model(self.model)) == torch.float32
        moved = movement(before, after, is_float32)
        gap, tolerance = self._guard.worst_of_all_processes(torch.stack(moved))
        if gap > tolerance:
            raise ValueError(
                f"The reference policy has moved in training: its log-probabilities of the first batch differ by "
                f"{gap:.3g} nats from those at the start, and rewards and gradients with them. Train nothing that the "
                "reference is made of, or pass it as a model of its own: `ref_model=`."
            )

    def rewards(self, policy_logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        """Implicit rewards, `(B, 2)`, detached."""
        return implicit_rewards(policy_logps, ref_logps, beta=self.beta)

    @property
    def reference_hash(self) -> str | None:
        """Hash of the reference's weights; `None` without a reference model."""
        if self._reference_hash is None and self.reference_kind not in _MAY_DIFFER:
            # Before training the policy holds the reference's weights, and is not sharded yet
            self._reference_hash = hash_weights(self.model)
        return self._reference_hash

    @property
    def reference_description(self) -> str:
        """What the reference is, in words."""
        return self.reference_kind + (", cached" if self.precompute_ref_logps else "")

    @property
    def _reference_is_the_start(self) -> bool:
        prompt_learning = is_peft_model(self.model) and any(
            config.is_prompt_learning for config in self.model.peft_config.values()
        )
        return self.reference_kind not in _MAY_DIFFER and not prompt_learning and self.args.neftune_noise_alpha is None

    @property
    def autocast(self) -> str:
        """The autocast that forwards run under: `"no"`, `"bf16"` or `"fp16"`, whatever was asked for."""
        if not self.accelerator.native_amp:  # fp16 on a CPU; DeepSpeed, which casts the weights instead
            return "no"
        # accelerate runs what fp8 leaves over in bfloat16
        return "fp16" if self.accelerator.mixed_precision == "fp16" else "bf16"

    @property
    def lowered_precision(self) -> str:
        """As [`autocast`], and of weights that DeepSpeed casts when it takes them over."""
        return self.accelerator.mixed_precision if self.is_deepspeed_enabled else self.autocast

    def compute_dtype(self, model: PreTrainedModel) -> torch.dtype:
        """Dtype of a model's forward: autocast's, else that of its weights."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.lowered_precision, model.dtype)

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if isinstance(dataset, IterableDataset):
            return super()._precompute_ref_logps(dataset, name, batch_size)  # TRL's error
        if self.reference_kind == reference_policy.NONE or has_ref_logps(dataset, self.ref_columns):
            return dataset
        self.group_forwards()  # TRL calls this before its own `__init__` ends
        model = self._reference_before_training()
        reference = self.accelerator.unwrap_model(model)
        dtype = f"{reference.dtype} under {self.lowered_precision} autocast"
        tokens = hash_token_ids(dataset, self.token_columns)
        key = CacheKey(self.reference_hash, tokens, dtype, self.ld_alpha)
        training = model.training
        model.eval()
        logps = reference_pass(
            dataset,
            logps_of=partial(self.run_reference_to_cache, model),
            collate=self.data_collator,
            to_device=self._prepare_inputs,
            tolerance_of=lambda logps: reward_tolerance(logps, 1.0, self.compute_dtype(reference)),
            accelerator=self.accelerator,
            batch_size=batch_size,
            file=RefLogpsFile(self.args.default_cache_dir(), key),
            name=name,
        )
        model.train(training)
        return self.with_ref_logps(dataset, logps)

    def _reference_before_training(self) -> nn.Module:
        if self.ref_model is not None:
            return self.ref_model
        if self.is_deepspeed_enabled and self._precompute_engine is None:
            # As in TRL: before training the weights are still on the CPU, and in parts under ZeRO-3
            self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
        return self.model if self._precompute_engine is None else self._precompute_engine

    def with_ref_logps(self, dataset: Dataset, logps: Tensor) -> Dataset:
        """Adds reference log-probabilities `(n, 2)` to the rows."""
        for column, values in zip(self.ref_columns, logps.T.tolist(), strict=True):
            dataset = dataset.add_column(column, values)
        return dataset
