"""What differs between methods: data, loss, metrics and predictions."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import DataCollator, PreTrainedModel, PreTrainedTokenizerBase

from trl_dpo_ext.batches import REF_LOGPS_COLUMNS, Batch
from trl_dpo_ext.data.checks import TOKENIZED_COLUMNS
from trl_dpo_ext.data.dataset_preparation import prepare_dataset
from trl_dpo_ext.data.options import preparation_options
from trl_dpo_ext.data.preparation_report import DataReport
from trl_dpo_ext.logps import CompletionLogps
from trl_dpo_ext.metrics.sums import Sums
from trl_dpo_ext.reference.fixed import check_reference_is_fixed
from trl_dpo_ext.reference.policy import ADAPTER_COPY, copy_to_ref_adapter
from trl_dpo_ext.rewards import implicit_rewards
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.forward.batch_result import BatchResult
from trl_dpo_ext.trainers.forward.batch_runner import BatchRunner
from trl_dpo_ext.trainers.forward.reference_logps import Reference
from trl_dpo_ext.trainers.logs.batch_metrics import batch_metrics


__all__ = ["Objective"]


class Objective:
    """
    The part of a trainer that differs between methods. By default: pairs, without a loss.

    A new objective on pairs implements [`losses`], in a subclass of
    [`~trl_dpo_ext.trainers.base_trainer.BaseDPOTrainer`].
    """

    args: BaseDPOConfig
    model: PreTrainedModel
    ref_model: nn.Module | None
    beta: float
    aux_loss_enabled: bool
    router_aux_loss_coef: float
    reference: Reference
    accelerator: Accelerator
    compute_ref_log_probs: Callable[..., tuple[Tensor, Tensor]]
    _is_vision_dataset: bool
    _padding_free: bool | None
    _tokenizer: PreTrainedTokenizerBase

    config_class: ClassVar[type[BaseDPOConfig]] = BaseDPOConfig
    takes_images: ClassVar[bool] = True
    # Columns of tokenized rows and of reference log-probabilities
    token_columns: ClassVar[tuple[str, ...]] = TOKENIZED_COLUMNS
    ref_columns: ClassVar[tuple[str, ...]] = REF_LOGPS_COLUMNS
    # Whether preparation returns pairs, see `prepare_dataset`
    as_pairs: ClassVar[bool] = True
    # Whether losses are negative log-probabilities of observed orders
    has_orders: ClassVar[bool] = False
    # Loss in LaTeX, for the model card
    equation: str | None = None
    # Number of completions of the largest group of all datasets, the same on every process
    largest = 2

    # Data

    def default_collator(self, args: Any) -> DataCollator | None:
        """Returns the collator of a trainer whose batches are not pairs, or `None` for TRL's."""
        return None

    def prepare(
        self, dataset: Any, processing_class: Any, args: BaseDPOConfig, dataset_name: str, keep_all: bool = False
    ) -> tuple[Any, DataReport]:
        """Converts raw rows to token ids. With `keep_all`, for prediction, no row is dropped."""
        return prepare_dataset(
            dataset,
            processing_class,
            as_pairs=self.as_pairs,
            keep_all=keep_all,
            dataset_name=dataset_name,
            num_proc=args.dataset_num_proc,
            **preparation_options(args),
        )

    def with_ref_logps(self, dataset: Dataset, logps: Tensor) -> Dataset:
        """Adds reference log-probabilities `(n, K)` to the rows."""
        for column, values in zip(self.ref_columns, logps.T.tolist(), strict=True):
            dataset = dataset.add_column(column, values)
        return dataset

    def read_batch(self, collated: Mapping[str, Any], num_real: int | None = None) -> Batch:
        """Reads a collated batch. The first `num_real` examples are real, by default all."""
        return Batch.of(collated, num_real=num_real, largest=self.largest, has_images=self._is_vision_dataset)

    # Forward passes

    @cached_property
    def runner(self) -> BatchRunner:
        """Runs batches. Created when TRL has built the models, before anything is run."""
        if self.reference.kind == ADAPTER_COPY:
            copy_to_ref_adapter(self.model)
        check_reference_is_fixed(self.model, self.ref_model, self.reference.kind)
        return BatchRunner(
            policy=self.model,
            ref_model=self.ref_model,
            args=self.args,
            padding_free=self._padding_free,
            accelerator=self.accelerator,
            tokenizer=self._tokenizer,
            has_images=self._is_vision_dataset,
            counts_router_tokens=self.aux_loss_enabled,
        )

    def run_reference(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Runs a reference like TRL. Returns log-probabilities `(B, K)` and `(B, K, T - 1)` of tokens, in nats."""
        rows = self.runner.model_inputs(batch)
        seen: list[Tensor] = []

        def recorded(**kwargs: Any) -> Any:
            outputs = model(**kwargs)
            seen.append(outputs.log_probs)  # TRL returns only their sums
            return outputs

        logps = torch.cat(self.compute_ref_log_probs(recorded, rows))  # TRL splits any rows in two halves
        token_logps = seen[0][:, -(rows["input_ids"].size(1) - 1) :]
        return batch.to_groups(logps), batch.to_groups(token_logps)

    def reference_logps(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Returns reference log-probabilities `(B, K)` of a batch, and of its tokens. See [`Reference.logps`]."""
        return self.reference.logps(batch, self.model, self.ref_model)

    def rewards(self, policy_logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        """Returns implicit rewards, `(B, K)`, detached."""
        return implicit_rewards(policy_logps, ref_logps, beta=self.beta)

    # Loss

    def losses(self, policy_logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        """
        Returns the losses of a batch. This is the only method that a new objective must implement.

        Args:
            policy_logps (`torch.Tensor` of shape `(B, 2)`):
                Summed log-probabilities under the policy, chosen first, in nats.
            ref_logps (`torch.Tensor` of shape `(B, 2)`, *optional*):
                Same under the reference.

        Returns:
            `torch.Tensor` of shape `(B,)`: Losses, with gradient.
        """
        raise NotImplementedError

    def losses_of(self, policy: CompletionLogps, ref_logps: Tensor | None, batch: Batch) -> Tensor:
        """Same as [`losses`], for an objective on single tokens or ranks. `policy` has the shapes `(B, K, ...)`."""
        return self.losses(policy.logps, ref_logps)

    def observed_ranks(self, batch: Batch) -> Tensor:
        """Returns the ranks `(B, K)` that the objective and its metrics see."""
        return batch.ranks

    def score(self, model: nn.Module, batch: Batch) -> BatchResult:
        """Runs reference and policy on a batch and computes the losses."""
        ref_logps, ref_token_logps = self.reference_logps(batch)
        policy = self.runner.run_policy(model, batch)
        losses = self.losses_of(policy, ref_logps, batch)
        order_losses = losses.detach() if self.has_orders else None
        if self.aux_loss_enabled:
            losses = losses + self.router_aux_loss_coef * policy.aux_loss
        return BatchResult(
            losses=losses,
            rewards=self.rewards(policy.logps, ref_logps),
            policy=policy,
            ref_logps=ref_logps,
            ref_token_logps=ref_token_logps,
            ranks=self.observed_ranks(batch),
            exists=batch.exists,
            weights=batch.weights,
            order_losses=order_losses,
        )

    def divisor_of(self, batches: list[dict[str, Any]], examples: int) -> int | Tensor:
        """Returns the divisor of the sum of an update's losses, over all processes: its number of examples."""
        return examples

    def divergence_of(self, result: BatchResult) -> Tensor | None:
        """Returns how far a batch has diverged (above 1: too far), or `None` for an objective with a lower bound."""
        return None

    @property
    def divergence(self) -> str:
        """Error message of a batch that has diverged, with the fix."""
        return ""

    # Metrics and predictions

    def metrics_of(self, result: BatchResult) -> dict[str, Sums]:
        """Returns the metrics of a batch, with the same names on every process."""
        return batch_metrics(result, self.largest)

    def predictions_of(self, result: BatchResult) -> tuple[Tensor, Tensor]:
        """Returns the predictions of a batch: rewards `(B, K)` and ranks `(B, K)`."""
        return result.rewards, result.ranks
