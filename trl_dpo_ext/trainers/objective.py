"""What a method says for itself: its data, its loss, its metrics and its predictions."""

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
    The part of a trainer that differs from method to method. As it stands: pairs, without a loss.

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
    # Columns of tokenized rows, and of reference log-probabilities
    token_columns: ClassVar[tuple[str, ...]] = TOKENIZED_COLUMNS
    ref_columns: ClassVar[tuple[str, ...]] = REF_LOGPS_COLUMNS
    # How preparation reads rows, see `prepare_dataset`
    preparation: ClassVar[dict[str, Any]] = {"as_pairs": True}
    # Whether losses are minus the log-probabilities of observed orders
    has_orders: ClassVar[bool] = False
    # The loss, in LaTeX, for the model card
    equation: str | None = None
    # Completions of the largest group of all data sets, the same on every process
    largest = 2

    # Data

    def default_collator(self, args: Any) -> DataCollator | None:
        """Collator of a trainer whose batches are not pairs; `None` for TRL's."""
        return None

    def prepare(
        self, dataset: Any, processing_class: Any, args: BaseDPOConfig, dataset_name: str, keep_all: bool = False
    ) -> tuple[Any, DataReport]:
        """Turns raw rows into token ids; with `keep_all`, for prediction, none is left out."""
        return prepare_dataset(
            dataset,
            processing_class,
            keep_all=keep_all,
            dataset_name=dataset_name,
            num_proc=args.dataset_num_proc,
            **self.preparation,
            **preparation_options(args),
        )

    def with_ref_logps(self, dataset: Dataset, logps: Tensor) -> Dataset:
        """Adds reference log-probabilities `(n, K)` to the rows."""
        for column, values in zip(self.ref_columns, logps.T.tolist(), strict=True):
            dataset = dataset.add_column(column, values)
        return dataset

    def read_batch(self, collated: Mapping[str, Any], num_real: int | None = None) -> Batch:
        """Reads what the collator made; `num_real` of its examples are real, by default all."""
        return Batch.of(collated, num_real=num_real, largest=self.largest, has_images=self._is_vision_dataset)

    # Forwards

    @cached_property
    def runner(self) -> BatchRunner:
        """Runs batches. Made as soon as TRL has built the models, and before anything is run."""
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
        """Runs a reference as TRL does: log-probabilities `(B, K)`, and of each token `(B, K, T - 1)`; nats."""
        rows = self.runner.model_inputs(batch)
        seen: list[Tensor] = []

        def recorded(**kwargs: Any) -> Any:
            outputs = model(**kwargs)
            seen.append(outputs.log_probs)  # TRL returns their sums alone
            return outputs

        logps = torch.cat(self.compute_ref_log_probs(recorded, rows))  # in two halves, whatever the rows are
        token_logps = seen[0][:, -(rows["input_ids"].size(1) - 1) :]
        return batch.to_groups(logps), batch.to_groups(token_logps)

    def reference_logps(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Reference log-probabilities of a batch, `(B, K)`, and of its tokens; see [`Reference.logps`]."""
        return self.reference.logps(batch, self.model, self.ref_model)

    def rewards(self, policy_logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        """Implicit rewards, `(B, K)`, detached."""
        return implicit_rewards(policy_logps, ref_logps, beta=self.beta)

    # Loss

    def losses(self, policy_logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        """
        Returns the losses of a batch. The one method a new objective implements.

        Args:
            policy_logps (`torch.Tensor` of shape `(B, 2)`):
                Summed log-probabilities under the policy, chosen first, nats.
            ref_logps (`torch.Tensor` of shape `(B, 2)`, *optional*):
                The same under the reference.

        Returns:
            `torch.Tensor` of shape `(B,)`: losses, with gradient.
        """
        raise NotImplementedError

    def losses_of(self, policy: CompletionLogps, ref_logps: Tensor | None, batch: Batch) -> Tensor:
        """As [`losses`], for an objective that looks at single tokens or at ranks; `policy` is `(B, K, ...)`."""
        return self.losses(policy.logps, ref_logps)

    def observed_ranks(self, batch: Batch) -> Tensor:
        """The ranks `(B, K)` that the objective and its metrics see."""
        return batch.ranks

    def score(self, model: nn.Module, batch: Batch) -> BatchResult:
        """Runs reference and policy on a batch and applies the objective."""
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
        """What the sum of an update's losses is divided by, over all processes: its number of examples."""
        return examples

    def divergence_of(self, result: BatchResult) -> Tensor | None:
        """How far a batch has run away, above 1 too far; `None` for an objective that is bounded below."""
        return None

    @property
    def divergence(self) -> str:
        """What running away means here, and what to do, for the error."""
        return ""

    # Metrics and predictions

    def metrics_of(self, result: BatchResult) -> dict[str, Sums]:
        """The metrics of a batch, the same names on every process."""
        return batch_metrics(result, self.largest)

    def predictions_of(self, result: BatchResult) -> tuple[Tensor, Tensor]:
        """What `predict` returns for a batch: rewards `(B, K)` and ranks `(B, K)`."""
        return result.rewards, result.ranks
