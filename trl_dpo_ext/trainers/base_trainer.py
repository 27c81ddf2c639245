"""What all the trainers share: data, reference, exact weighting of rows, exact figures."""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Sampler, SequentialSampler
from transformers import DataCollator
from transformers.trainer_utils import PredictionOutput, has_length

from trl_dpo_ext.data.columns import opened
from trl_dpo_ext.data.image_collator import NO_ANSWER_LEFT, ImageCollator, no_answer_left
from trl_dpo_ext.data.lengths import add_lengths
from trl_dpo_ext.data.report import DataReport
from trl_dpo_ext.logps import CompletionLogps
from trl_dpo_ext.models.limits import check_is_causal_lm
from trl_dpo_ext.models.loading import whole_models
from trl_dpo_ext.processes import check_same, get_logger, together
from trl_dpo_ext.reference import policy as reference_policy
from trl_dpo_ext.reference.choice import choose_reference
from trl_dpo_ext.reference.identity import hash_weights
from trl_dpo_ext.reference.start_check import explain_start
from trl_dpo_ext.trainers.arguments import (
    SAMPLED_BY_LENGTH,
    check_attention,
    check_data_loading,
    check_reference_model,
    config_from,
    datasets_by_name,
    has_images,
    opened_sets,
)
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.dataset_preparation import prepare_preferences
from trl_dpo_ext.trainers.first_look import warn_of_text
from trl_dpo_ext.trainers.output_folder import check_overwrites_nothing
from trl_dpo_ext.trainers.rows import NUM_REAL_ROWS, first_rows, num_real_rows, num_rows, num_rows_everywhere
from trl_dpo_ext.trainers.run_summary import RunSummary
from trl_dpo_ext.trainers.scored_batch import ScoredBatch
from trl_dpo_ext.trainers.update_guard import UpdateGuard
from trl_dpo_ext.trainers.with_samples import WithSamples


__all__ = ["BaseDPOTrainer"]

logger = get_logger(__name__)


class BaseDPOTrainer(WithSamples):
    """
    [`trl.DPOTrainer`] with the right reference, exact figures, and rows weighted by example.

    A subclass sets `config_class` and implements [`losses`]; see [`DPOPaperTrainer`]. Arguments are those of
    [`trl.DPOTrainer`]; a plain [`trl.DPOConfig`] is taken as `preset="trl"`.
    """

    args: BaseDPOConfig

    _tag_names = ["trl", "dpo", "trl-dpo-ext"]

    config_class: ClassVar[type[BaseDPOConfig]] = BaseDPOConfig
    takes_images: ClassVar[bool] = True

    def __init__(
        self,
        model,
        ref_model=None,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics=None,
        callbacks=None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
    ):
        args = config_from(args, model, self.config_class, self._name)
        # A non-finite loss is an error here; the filter would replace it by an average, at one synchronisation a
        # micro-batch
        args.logging_nan_inf_filter = False
        train_dataset, eval_dataset = opened_sets(train_dataset, eval_dataset)
        check_data_loading(args, train_dataset, eval_dataset)
        check_reference_model(ref_model)
        check_overwrites_nothing(args, model, ref_model, train_dataset)
        for given in (model, ref_model):  # one that TRL loads is checked as soon as it has
            if isinstance(given, nn.Module):
                check_is_causal_lm(given)
        if not self.takes_images and has_images(train_dataset):
            raise ValueError(f"`{type(self).__name__}` takes no images. Use `DPOPaperTrainer` with pairs.")
        self.data_reports: dict[str, DataReport] = {}
        self._reference_hash: str | None = None

        self.reference_kind = choose_reference(
            model, ref_model, args, train_dataset, eval_dataset, peft_config, self.ref_columns
        )
        explicit = ref_model is not None
        if explicit and ref_model is not model:
            self._reference_hash = hash_weights(ref_model, with_adapters=True)
        if self.reference_kind == reference_policy.COPY:
            ref_model = reference_policy.copy_in_memory(model)
        reference_policy.forget_ref_adapter(model)
        without_reference = self.reference_kind in (reference_policy.NONE, reference_policy.COLUMNS)
        if without_reference:
            ref_model = reference_policy.NoReference()

        with whole_models():
            super().__init__(
                model=model,
                ref_model=ref_model,
                args=args,
                data_collator=self.default_collator(args) if data_collator is None else data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        # HF then divides by the micro-batches of an update, also a term that an override of `compute_loss` adds
        self.model_accepts_loss_kwargs = False
        if without_reference or (args.precompute_ref_log_probs and not explicit):
            self.ref_model = None
        if without_reference:
            self.precompute_ref_logps = False
        self.check_samples()
        self.check_rows_fit()
        if self._is_vision_dataset and args.max_length is not None:
            self.data_collator = ImageCollator(self.data_collator)
            for name, rows in datasets_by_name(self.train_dataset, self.eval_dataset).items():
                self.data_collator.check_first(rows or [], name, args.max_length)
        reference_policy.mark_ref_adapter(self.model)
        check_attention(self.model.config._attn_implementation, self.compute_dtype(self.model))
        self.reference_hash  # noqa: B018 - computed now: training changes the weights, or shards them
        self._guard = UpdateGuard(
            self.accelerator, self.beta, self.compute_dtype(self.model), self._reference_is_the_start
        )
        self.add_callback(self._guard)
        self.add_callback(
            RunSummary(
                name=type(self).__name__,
                args=args,
                model=self.model,
                mixed_precision=self.lowered_precision,
                distributed_type=self.accelerator.distributed_type,
                prompts=self.layout_description,
                reference=self.reference_description,
                data=self.data_reports.get("train"),
            )
        )

    def default_collator(self, args: Any) -> DataCollator | None:
        """Collator of a trainer whose batches are not pairs; `None` for TRL's."""
        return None

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

    def losses_of(self, policy: CompletionLogps, policy_logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        """As [`losses`], for an objective that looks at single tokens."""
        return self.losses(policy_logps, ref_logps)

    def divergence_of(self, scored: ScoredBatch) -> Tensor | None:
        """How far a batch has run away, above 1 too far; `None` for an objective that is bounded below."""
        return None

    @property
    def loss_is_overridden(self) -> bool:
        return type(self).compute_loss is not BaseDPOTrainer.compute_loss

    @property
    def divergence(self) -> str:
        """What running away means here, and what to do, for the error."""
        return ""

    def score(self, model: nn.Module, inputs: dict[str, Any], weights: Tensor) -> ScoredBatch:
        """Runs reference and policy on a batch and applies the objective."""
        ref_logps, ref_token_logps = self.reference_logps(inputs)
        policy, policy_logps = self.run_policy(model, inputs)
        losses = self.losses_of(policy, policy_logps, ref_logps)
        if self.aux_loss_enabled:
            losses = losses + self.router_aux_loss_coef * policy.aux_loss
        rewards = self.rewards(policy_logps, ref_logps)
        return ScoredBatch(losses, rewards, ref_logps, policy, weights, ref_token_logps=ref_token_logps)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rows = num_rows(inputs)
        real = inputs.pop(NUM_REAL_ROWS, rows)
        prompt_of_full_row = inputs.pop(NO_ANSWER_LEFT, None)
        if real < rows and not self._is_vision_dataset:
            inputs = first_rows(inputs, max(real, 1))
        weights = (torch.arange(num_rows(inputs), device=inputs["input_ids"].device) < real).float()  # (B,)
        inputs = self.with_groups(inputs)  # once, for policy and reference
        try:
            scored = self.score(model, inputs, weights)
        except ValueError as error:
            # TRL's words for a model's terse error
            if "Image features and image tokens do not match" in str(error) and self.args.max_length is not None:
                raise ValueError(
                    f"The current `max_length` ({self.args.max_length}) is too short and causes image placeholder "
                    "tokens in `input_ids` to be truncated, while the corresponding image features remain intact. "
                    "Please increase `max_length` or set it to `None` to disable truncation."
                ) from error
            raise
        if prompt_of_full_row is not None:
            row = f"the row whose prompt begins with {prompt_of_full_row}"
            raise ValueError(no_answer_left(row, self.args.max_length))
        self.record(scored, inputs)
        if self.model.training:
            self._guard.add(scored, self.divergence_of(scored))
            if self.accelerator.sync_gradients:
                explain = partial(self._explain_start, model, inputs, scored)
                self._guard.finish(self.state.global_step + 1, explain, self.divergence)

        total = (scored.losses * scored.weights).sum()
        if num_items_in_batch is None:
            loss = total / max(real, 1)
        else:
            # Gradients are averaged over the ranks; this makes them the mean over the update's examples
            scale = self.args.data_parallel_ranks * self.current_gradient_accumulation_steps
            loss = total * scale / num_items_in_batch
        return (loss, scored) if return_outputs else loss

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """Collects the micro-batches of an update, notes how many rows of each are real, and counts them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) < num_batches and isinstance(self.train_dataset, IterableDataset):
            return self._end_of_stream(batches, num_batches), None
        in_update = 0
        for position, batch in enumerate(batches, start=1):
            is_last = position == len(batches)
            in_update += num_rows_everywhere(
                self.accelerator, num_rows(batch), self.args.data_parallel_ranks, is_last=is_last
            )
            batch[NUM_REAL_ROWS] = num_real_rows(self.accelerator, batch, is_last=is_last)
        return batches, in_update or None

    def _end_of_stream(self, batches: list, num_batches: int) -> list:
        # HF would carry these micro-batches' gradients into the next epoch, or loop for ever without an update
        if self.state.global_step == 0:
            raise ValueError(
                f"The streaming training set ended after {len(batches)} micro-batches; an update takes {num_batches}. "
                "Lower `global_batch_size` (or `gradient_accumulation_steps`), or stream more rows."
            )
        if batches:
            logger.warning(
                f"The streaming training set ended within an update: its last {sum(map(num_rows, batches))} rows on "
                "each process, fewer than an update takes, are left out."
            )
        return []

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._guard.add_gradient_norm(grad_norm)
        return grad_norm

    def _explain_start(
        self, model: nn.Module, inputs: dict[str, Any], scored: ScoredBatch, tolerance: float
    ) -> tuple[bool, str]:
        def gap_without_dropout() -> float:
            model.eval()
            with torch.no_grad():
                _, policy_logps = self.run_policy(model, inputs)
            model.train()
            gap = self.rewards(policy_logps, scored.ref_logps).abs().max()
            return self._guard.worst_of_all_processes(gap[None])[0]

        return explain_start(gap_without_dropout, tolerance, self.model, self.ref_model, self.reference_kind)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        if self.lr_scheduler is None and self.args.uses_paper_schedule:
            warmup = self.args.get_warmup_steps(num_training_steps)
            # The authors': update 1 runs at lr/(W + 1), where HF's k/W has it at 0
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda k: min(1.0, (k + 1) / (warmup + 1)))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        rows = num_rows(inputs)
        inputs[NUM_REAL_ROWS] = num_real_rows(self.accelerator, inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, scored = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        if not isinstance(scored, ScoredBatch):  # an override's outputs, as TRL takes them
            return loss, scored.logits, inputs["input_ids"]
        rewards, ranks = self.predictions_of(scored)
        # Every process returns as many rows, and the repeated ones are dropped when they are gathered
        missing = rows - len(rewards)
        return loss, F.pad(rewards, (0, 0, 0, missing)), F.pad(ranks, (0, 0, 0, missing))

    def predictions_of(self, scored: ScoredBatch) -> tuple[Tensor, Tensor]:
        """What `predict` returns for a batch: rewards `(B, 2)` and ranks `(B, 2)`."""
        ranks = torch.arange(scored.rewards.size(1), device=scored.rewards.device)
        return scored.rewards, ranks.expand_as(scored.rewards)

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test") -> PredictionOutput:
        """
        Scores raw or prepared rows.

        Args:
            test_dataset (`Dataset`):
                Preference rows, as for training. All are scored, also those with two equal answers.
            ignore_keys (`list[str]`, *optional*):
                As in [`~transformers.Trainer.predict`].
            metric_key_prefix (`str`, *optional*, defaults to `"test"`):
                Prefix of the metrics.

        Returns:
            [`~transformers.trainer_utils.PredictionOutput`]: `predictions` are implicit rewards `(n, 2)`, chosen
            first; `label_ids` are ranks `(n, 2)`, 0 for the best; `metrics` are the exact means.
        """
        if not self._is_vision_dataset:
            test_dataset, _ = self._prepare_everywhere(
                test_dataset, self.processing_class, self.args, metric_key_prefix, keep_all=True
            )
            if self.precompute_ref_logps:
                if self.ref_model is None and not is_peft_model(self.model) and self.state.global_step > 0:
                    raise ValueError(
                        "`predict` cannot compute reference log-probabilities of new rows after training: with "
                        "`precompute_ref_log_probs=True` and no `ref_model` the reference was the policy before "
                        "training. Pass `ref_model`, or set `precompute_ref_log_probs=False`."
                    )
                batch_size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
                test_dataset = self._precompute_ref_logps(test_dataset, metric_key_prefix, batch_size)
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        raw = dataset
        dataset, report = self._prepare_everywhere(dataset, processing_class, args, dataset_name)
        self.data_reports[dataset_name] = report
        if report.dropped:
            logger.warning(
                f"{report.dropped} rows of the {dataset_name} dataset are left out (first: {report.first_dropped})."
            )
        if dataset_name == "train":
            warn_of_text(raw, self._tokenizer, args.tokenization)
        if report.prompts_repeated:
            logger.warning(
                f"The answers of {report.prompts_repeated} rows of the {dataset_name} dataset begin with their "
                "prompt, which is taken once."
            )
        if args.train_sampling_strategy in SAMPLED_BY_LENGTH and dataset_name == "train":
            if isinstance(dataset, Dataset):
                dataset = add_lengths(dataset, args.length_column_name, self.token_columns)
        return dataset

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        # HF groups by length here too, and `predict` would return rows in another order than they came in
        return SequentialSampler(eval_dataset) if self.args.world_size == 1 and has_length(eval_dataset) else None

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        if self.args.length_column_name not in self._signature_columns:
            self._signature_columns.append(self.args.length_column_name)

    def _prepare_everywhere(
        self, dataset: Any, processing_class: Any, args: BaseDPOConfig, dataset_name: str, keep_all: bool = False
    ) -> tuple[Any, DataReport]:
        # Each machine may have a copy of its own
        with together():
            dataset = opened(dataset, dataset_name)
            if isinstance(dataset, IterableDataset) and dataset_name != "train" and args.world_size > 1:
                # A stream cannot be split over processes without repeating rows or leaving some out
                dataset = Dataset.from_list(list(dataset))
            dataset, report = self.prepare(dataset, processing_class, args, dataset_name, keep_all)
        if isinstance(dataset, Dataset):
            check_same(len(dataset), f"usable rows of the {dataset_name} dataset")
        return dataset, report

    def prepare(
        self, dataset: Any, processing_class: Any, args: BaseDPOConfig, dataset_name: str, keep_all: bool = False
    ) -> tuple[Any, DataReport]:
        """Turns raw rows into token ids; with `keep_all`, for prediction, none is left out."""
        return prepare_preferences(dataset, processing_class, args, dataset_name, keep_all)
