"""The message at the start of a run: one line with its settings, and warnings with their fix."""

import sys
from typing import Any

import torch
from accelerate.utils import DistributedType, is_peft_model, parse_flag_from_env
from tqdm.auto import tqdm
from transformers import SchedulerType, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import OptimizerNames

from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.trainers.forward.precision import lowered_precision


__all__ = ["RunSummary"]

logger = get_logger(__name__)

_SMALL_MODEL = 500_000_000  # parameters; the paper trained 774 M to 6 B at 1e-6
_WITHOUT_WARMUP = (SchedulerType.CONSTANT, SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
_HALF = (torch.bfloat16, torch.float16)


class RunSummary(TrainerCallback):
    """
    Prints one line when training starts, and warns of settings that work but are probably not intended.

    Args:
        trainer ([`~trl_dpo_ext.trainers.base_trainer.BaseDPOTrainer`]): Trainer, before it trains.
    """

    def __init__(self, trainer: Any):
        self.name = type(trainer).__name__
        self.args = trainer.args
        self.model = trainer.model
        self.mixed_precision = lowered_precision(trainer.accelerator)
        self.distributed_type = trainer.accelerator.distributed_type
        self.prompts = str(trainer.runner)
        self.reference = trainer.reference.description
        self.data = trainer.data_reports.get("train")  # `None` if preparation did not run (images)
        self.learning_rate: float | None = trainer.args.learning_rate

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A resumed run has the learning rate of its checkpoint
        self.learning_rate = max(getattr(kwargs.get("lr_scheduler"), "base_lrs", [self.learning_rate]))
        if state.is_world_process_zero:
            tqdm.write(self.line(state))
            with tqdm.external_write_mode(file=sys.stderr):  # starts a line after the progress bar
                for warning in self.warnings(state):
                    logger.warning(warning)

    def line(self, state: TrainerState) -> str:
        """Returns the line: batch size, updates, optimizer, schedule, precision, reference, prompts and data."""
        args = self.args
        ranks = args.data_parallel_ranks
        per_device, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
        warmup = args.get_warmup_steps(state.max_steps)
        schedule = SchedulerType(args.lr_scheduler_type).value
        if args.uses_paper_schedule:
            schedule += " (k+1)/(W+1)"
        weights = "/".join(sorted({_name(p.dtype) for p in self.model.parameters() if p.requires_grad}))
        precision = f"{weights} weights"
        if self.mixed_precision != "no":
            precision += f" under {self.mixed_precision} autocast"
        updates = f"{state.max_steps} updates"
        if state.global_step:
            updates += f", resumed after {state.global_step}"
        return (
            f"{self.name} (preset {args.preset!r}): {per_device * accumulation * ranks} rows an "
            f"update = {per_device} x {accumulation} x {ranks} (per device x accumulation x ranks), "
            f"{updates}; {OptimizerNames(args.optim).value} at {self.learning_rate:g}, {schedule}, "
            f"warm-up {warmup}; beta {args.beta:g}; {precision}; reference: {self.reference}; "
            f"prompts: {self.prompts}; "
            f"data: {self.data or 'as passed'}."
        )

    def warnings(self, state: TrainerState) -> list[str]:
        """Returns warnings of settings that are probably not intended, each with its fix."""
        args = self.args
        found = []
        warmup = args.get_warmup_steps(state.max_steps)
        if state.max_steps < 2 * warmup and SchedulerType(args.lr_scheduler_type) not in _WITHOUT_WARMUP:
            if args.uses_paper_schedule:
                which, share = "last", state.max_steps / (warmup + 1)
            else:
                which, share = "highest", (state.max_steps - 1) / warmup
            found.append(
                f"{state.max_steps} updates are fewer than twice the {warmup} of warm-up; the {which} runs at "
                f"{self.learning_rate * min(1.0, share):.3g} of {self.learning_rate:g}. Lower `warmup_steps`, lower "
                "`global_batch_size`, or train on more data."
            )
        if args.mixed_precision != "no" and self.mixed_precision == "no":
            found.append(
                f"`{args.mixed_precision}` is set, but accelerate does not use autocast here, such as for fp16 on a "
                "CPU. Set `bf16=True`, or train on a GPU."
            )
        asked = args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")
        if asked and self.distributed_type != DistributedType.FSDP:
            found.append(
                f"FSDP is set, but accelerate runs {self.distributed_type.value} here, as it does on a CPU: every "
                "process holds all weights. Train on GPUs, or leave FSDP out."
            )
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        adapter = is_peft_model(self.model)
        size = sum(p.numel() for p in self.model.parameters())
        if args.preset != "trl" and args.learning_rate <= 1e-6 and (adapter or size < _SMALL_MODEL):
            what = "an adapter" if adapter else f"a model of {size / 1e6:,.1f} M parameters"
            found.append(
                f"`learning_rate={args.learning_rate:g}` is the paper's, for full fine-tuning of billions of "
                f"parameters: {what} will hardly change. Raise it (5e-6 to 5e-5 for adapters and small models)."
            )
        quantized = getattr(self.model, "is_quantized", False)
        halves = sorted({_name(p.dtype) for p in trainable if p.dtype in _HALF})
        if halves and not quantized:
            found.append(
                f"The trained weights are {'/'.join(halves)}: updates below about 1/256 of a weight are lost. Load "
                "the model in float32 (with `bf16=True` it computes in bfloat16), or train an adapter."
            )
        if self.data is not None and self.data.share_truncated > 0.01:
            found.append(
                f"{self.data.share_truncated:.1%} of the training rows are truncated (`max_length={args.max_length}`, "
                f"`max_prompt_length={args.max_prompt_length}`): {self.data}. A truncated answer loses its EOS. "
                "Raise them, or drop long rows before training."
            )
        return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
