"""All overrides of TRL's trainer, in the order in which TRL calls them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import DynamoBackend
from datasets import Dataset, IterableDataset
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, PredictionOutput, TrainOutput, has_length
from trl import DPOTrainer

from trl_dpo_ext.batches import Batch, num_examples
from trl_dpo_ext.data.dataset_preparation import has_ref_logps
from trl_dpo_ext.data.image_collator import ImageCollator, images_explained
from trl_dpo_ext.data.lengths import add_lengths
from trl_dpo_ext.data.preparation_report import DataReport
from trl_dpo_ext.models.loading import whole_models
from trl_dpo_ext.processes import get_logger, together
from trl_dpo_ext.reference import policy as reference_policy
from trl_dpo_ext.run_log import RunLog
from trl_dpo_ext.trainers.argument_checks import (
    SAMPLED_BY_LENGTH,
    check_attention,
    check_is_evaluation_set,
    check_trainable,
    checked_arguments,
    datasets_by_name,
)
from trl_dpo_ext.trainers.checkpoints.checkpoint_files import newest_whole
from trl_dpo_ext.trainers.checkpoints.checkpoints import Checkpoints
from trl_dpo_ext.trainers.checkpoints.described_run import carry_window, complete_card, describe_run
from trl_dpo_ext.trainers.first_look import warn_of_text
from trl_dpo_ext.trainers.forward.batch_result import BatchResult
from trl_dpo_ext.trainers.forward.cached_reference import cached_ref_logps
from trl_dpo_ext.trainers.forward.first_rewards import explain_first_rewards
from trl_dpo_ext.trainers.forward.grouped_collator import grouped
from trl_dpo_ext.trainers.forward.precision import compute_dtype
from trl_dpo_ext.trainers.forward.reference_logps import Reference
from trl_dpo_ext.trainers.forward.repeated_rows import NUM_REAL, count_real_examples, end_of_stream, num_real_examples
from trl_dpo_ext.trainers.forward.update_guard import UpdateGuard
from trl_dpo_ext.trainers.logs.batch_metrics import batch_distributions
from trl_dpo_ext.trainers.logs.evaluation_log import show_evaluation
from trl_dpo_ext.trainers.logs.metrics_log import MetricsLog
from trl_dpo_ext.trainers.logs.run_summary import RunSummary
from trl_dpo_ext.trainers.logs.samples import SampleLog
from trl_dpo_ext.trainers.objective import Objective
from trl_dpo_ext.trainers.prepared_data import prepare_everywhere


__all__ = ["BaseDPOTrainer"]

logger = get_logger(__name__)


# TRL and transformers have wider types for `args`, `model` and `ref_model`
class BaseDPOTrainer(Objective, DPOTrainer):  # type: ignore[misc]
    """
    [`trl.DPOTrainer`] with the right reference, exact metrics, and rows weighted by example.

    A subclass sets `config_class` and implements [`losses`], see [`DPOPaperTrainer`]. Arguments are the same as in
    [`trl.DPOTrainer`]. A [`trl.DPOConfig`] is used as with `preset="trl"`.

    All overrides of TRL's methods are in this class, in the order in which TRL calls them. They use `runner` (forward
    passes), `reference`, `guard` (checks of an update), `metrics`, `samples`, `run_log` and `checkpoints`.
    [`Objective`] contains what differs between methods.
    """

    _tag_names = ["trl", "dpo", "trl-dpo-ext"]

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
        args, train_dataset, eval_dataset = checked_arguments(
            type(self), model, ref_model, args, train_dataset, eval_dataset
        )
        self.data_reports: dict[str, DataReport] = {}
        explicit = ref_model is not None
        self.reference, ref_model = Reference.of_arguments(
            model, ref_model, args, train_dataset, eval_dataset, peft_config, self.ref_columns, self.run_reference
        )
        # TRL does not support it at present, and would warn
        self._padding_free, args.padding_free = args.padding_free, False
        try:
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
        finally:
            args.padding_free = self._padding_free
        # HF then divides by the micro-batches of an update, also a term added by an override of `compute_loss`
        self.model_accepts_loss_kwargs = False
        self.runner  # noqa: B018 - created now, unless the cache needed it
        has_reference = self.reference.has_model
        self.precompute_ref_logps = has_reference and self.precompute_ref_logps
        if not has_reference or (args.precompute_ref_log_probs and not explicit):
            self.ref_model = None
        self.reference.is_cached = self.precompute_ref_logps
        self.samples = SampleLog(self)
        datasets = datasets_by_name(self.train_dataset, self.eval_dataset)
        self.runner.check_rows_fit(datasets, self.token_columns)
        if self._is_vision_dataset and args.max_length is not None:
            self.data_collator = ImageCollator(self.data_collator, args.max_length, datasets)
        reference_policy.mark_ref_adapter(self.model)
        dtype = compute_dtype(self.accelerator, self.model)
        check_attention(self.model.config._attn_implementation, dtype)
        self.reference.hash_of(self.model)  # now, because training changes or shards the weights
        self.metrics = MetricsLog(self.accelerator, args.data_parallel_ranks)
        self.run_log = RunLog(args.output_dir)
        self.checkpoints = Checkpoints(args, self.accelerator)
        is_start = self.reference.is_start_of(self.model, args)
        self.guard = UpdateGuard(self.accelerator, self.beta, dtype, checks_start=is_start)
        for callback in (self.run_log, self.checkpoints.epoch_start, self.guard, RunSummary(self)):
            self.add_callback(callback)

    # TRL's methods: models and data

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO  # `runner` compiles layers

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        prepared, report = prepare_everywhere(self.prepare, dataset, processing_class, args, dataset_name)
        self.data_reports[dataset_name] = report
        for warning in report.warnings(dataset_name):
            logger.warning(warning)
        if dataset_name == "train":
            warn_of_text(dataset, self._tokenizer, args.tokenization)
            if args.train_sampling_strategy in SAMPLED_BY_LENGTH and isinstance(prepared, Dataset):
                return add_lengths(prepared, args.length_column_name, self.token_columns)
        return prepared

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None and not self._is_vision_dataset:
            self._signature_columns = [*self.token_columns, *self.ref_columns, self.args.length_column_name]
        super()._set_signature_columns_if_needed()

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if isinstance(dataset, IterableDataset):
            return super()._precompute_ref_logps(dataset, name, batch_size)  # TRL's error
        if self.reference.kind == reference_policy.NONE or has_ref_logps(dataset, self.ref_columns):
            return dataset
        self.runner  # noqa: B018 - TRL calls this method before its own `__init__` ends
        return self.with_ref_logps(dataset, cached_ref_logps(self, dataset, name, batch_size))

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ):
        with grouped(self, dataset):
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        # HF also groups by length here, and `predict` would return rows in another order
        return SequentialSampler(eval_dataset) if self.args.world_size == 1 and has_length(eval_dataset) else None

    # TRL's methods: training

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None) -> TrainOutput:
        check_trainable(self.model, self.optimizer)
        self.metrics.start_training()
        self.reference.start_training()
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_whole(self.args.output_dir)
        eval_on_start = self.args.eval_on_start
        if resume_from_checkpoint:
            self._go_on_from(resume_from_checkpoint)
            self.args.eval_on_start = False
        else:
            self.checkpoints.warn_of_older()
        try:
            output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.args.eval_on_start = eval_on_start
        if not self.args.sync_ref_model:
            with torch.no_grad(), self.compute_loss_context_manager():
                self.reference.check_has_not_moved(self.model, self.ref_model, self.accelerator)
        return output

    def _go_on_from(self, checkpoint: str) -> None:
        with together():  # a checkpoint may be missing on one machine
            now = describe_run(self) | self._progress()
            kind, weights_hash = self.reference.kind, self.reference.hash_of(self.model)
            state = self.checkpoints.checked_state(checkpoint, self.model, now, kind, weights_hash)
        self.metrics.num_tokens = state.get("num_tokens", 0)
        self.guard.checks_start = False
        self.run_log.go_on_from(checkpoint, state.get("run_log", {}))

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        if self.lr_scheduler is None and self.args.uses_paper_schedule:
            warmup = self.args.get_warmup_steps(num_training_steps)
            # The authors' warm-up: update 1 has lr/(W + 1), while HF's k/W is 0
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda k: min(1.0, (k + 1) / (warmup + 1)))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        load = partial(super()._load_from_checkpoint, resume_from_checkpoint, model)
        self.checkpoints.load_weights(resume_from_checkpoint, self.accelerator.unwrap_model(self.model), load)

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        found = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            return found
        if self.args.sync_ref_model:
            self.checkpoints.load_reference(resume_from_checkpoint, self.ref_model)
        if self.checkpoints.has_windows(resume_from_checkpoint):
            self.checkpoints.epoch_start.start_by(partial(carry_window, self, resume_from_checkpoint))
        return self.checkpoints.start_of_epoch(
            resume_from_checkpoint,
            found,
            updates_per_epoch=num_update_steps_per_epoch,
            num_epochs=num_train_epochs,
            max_steps=max_steps,
            state=self.state,
            is_stream=isinstance(self.train_dataset, IterableDataset),
            load_random_state=self._load_rng_state,
        )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.checkpoints.of_other_processes(checkpoint):
            # All processes load the same order of rows. transformers would set only some of them
            self.checkpoints.epoch_start.load(checkpoint, of_process=0, at="now")
        else:
            super()._load_rng_state(checkpoint)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """Collects the micro-batches of an update, and counts and stores the number of real rows of each."""
        if self.state.global_step >= self.state.max_steps:  # resumed at the end of training
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) < num_batches and isinstance(self.train_dataset, IterableDataset):
            return end_of_stream(batches, num_batches, self.state.global_step), None
        examples = count_real_examples(self.accelerator, batches, self.args.data_parallel_ranks)
        return batches, self.divisor_of(batches, examples) if examples else None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        real = inputs.pop(NUM_REAL, num_examples(inputs))
        with images_explained(inputs, self.args.max_length):
            batch = self.read_batch(inputs, real)
            result = self.score(model, batch)
        self._record(result, batch)
        if self.model.training:
            self.guard.add(result, self.divergence_of(result))
            if self.accelerator.sync_gradients:
                explain = partial(explain_first_rewards, self, model, batch, result)
                self.guard.finish(self.state.global_step + 1, explain, self.divergence)

        total = (result.losses * result.weights).sum()
        if num_items_in_batch is None:
            loss = total / max(real, 1)
        else:
            # Gradients are averaged over the ranks. This makes them the mean over the examples of the update
            scale = self.args.data_parallel_ranks * self.current_gradient_accumulation_steps
            loss = total * scale / num_items_in_batch
        return (loss, result) if return_outputs else loss

    def _record(self, result: BatchResult, batch: Batch) -> None:
        metrics = self.metrics_of(result)
        if type(self).compute_loss is not BaseDPOTrainer.compute_loss:  # transformers logs the loss of the override
            del metrics["loss"]
        if self.model.training:
            self.metrics.add_training(metrics, batch.num_tokens)
        else:
            self.metrics.add_evaluation(metrics, batch_distributions(result, self.largest), result.weights)

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.guard.add_gradient_norm(grad_norm)
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # HF's logs of a training window and of the end, with TRL's metrics since the last window. All processes log
        if "loss" in logs or "train_runtime" in logs:
            logs.update(self.metrics.training_window())
        super().log(logs, start_time)
        distributions, samples = self.metrics.distributions_for(logs), self.samples.for_logs(logs)
        if self.is_world_process_zero():
            callbacks, step = self.callback_handler.callbacks, self.state.global_step
            show_evaluation(self.run_log, callbacks, step, distributions, samples)

    # TRL's methods: evaluation

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        check_is_evaluation_set(eval_dataset, self.eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        self.metrics.start_evaluation()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        self.samples.evaluated(metric_key_prefix, dataloader.dataset)
        return output._replace(metrics=output.metrics | self.metrics.end_evaluation(metric_key_prefix))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        examples = num_examples(inputs)
        inputs[NUM_REAL] = num_real_examples(self.accelerator, inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, result = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        if not isinstance(result, BatchResult):  # outputs of an override, in TRL's format
            return loss, result.logits, inputs["input_ids"]
        rewards, ranks = self.predictions_of(result)
        # Every process returns the same number of rows. The repeated ones are dropped when they are gathered
        missing = (0, 0, 0, examples - len(rewards))
        return loss, F.pad(rewards, missing), F.pad(ranks, missing)

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test") -> PredictionOutput:
        """
        Scores raw or prepared rows, including rows with equal answers. Arguments are the same as in
        [`~transformers.Trainer.predict`].

        Returns:
            [`~transformers.trainer_utils.PredictionOutput`]: `predictions` are implicit rewards `(n, K)`, chosen
            first; `label_ids` are ranks `(n, K)`, 0 for the best; `metrics` are exact means.
        """
        if not self._is_vision_dataset:
            test_dataset, _ = prepare_everywhere(
                self.prepare, test_dataset, self.processing_class, self.args, metric_key_prefix, keep_all=True
            )
            if self.precompute_ref_logps:
                self.reference.check_is_in_memory(self.model, self.ref_model, self.state.global_step)
                batch_size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
                test_dataset = self._precompute_ref_logps(test_dataset, metric_key_prefix, batch_size)
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    # TRL's methods: saving

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with self.checkpoints.make_room(folder):
            super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.guard.check_made(self.state.global_step, self.model)
        super().save_model(output_dir, _internal_call)
        if _internal_call:  # a checkpoint, which all processes save
            self.metrics.count_tokens()
        if self.args.should_save:
            state = describe_run(self) | (self._progress() if _internal_call else {})
            ref_model = self.ref_model if _internal_call else None
            self.checkpoints.write(output_dir or self.args.output_dir, state, ref_model)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        updates = self.state.global_step - self._globalstep_last_logged
        self.checkpoints.write_own(output_dir, updates, self._tr_loss, self.metrics.held())

    def _load_best_model(self) -> None:
        if not self.checkpoints.is_whole_here:
            super()._load_best_model()
            return
        best = self.state.best_model_checkpoint
        logger.info(f"Loading the best model from {best} (score: {self.state.best_metric}).")
        with together():
            self.checkpoints.check_best(best)
        self._load_from_checkpoint(best)  # transformers does not load adapters with other names

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            complete_card(self)

    def _progress(self) -> dict[str, Any]:
        return self.checkpoints.progress(self.run_log.lines, self.train_dataset, self.token_columns)
