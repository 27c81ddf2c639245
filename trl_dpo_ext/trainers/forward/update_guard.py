"""Checks of an update: finite losses and weights, and rewards of 0 before the first update."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import OptimizerNames

from trl_dpo_ext.processes import get_logger, is_sharded, worst_of_all_processes
from trl_dpo_ext.reference.start_check import reward_tolerance
from trl_dpo_ext.trainers.forward.batch_result import BatchResult


__all__ = ["UpdateGuard", "all_finite"]

logger = get_logger(__name__)

_WATCHED = ("policy log-probabilities", "reference log-probabilities", "losses")
_FIX = (
    "Lower `learning_rate` or `max_grad_norm`, train in float32 or bf16 instead of fp16, or look for a row that the "
    "model cannot score."
)
_MOST_SKIPPED = 40  # halvings from fp16's first loss scale, 2^16, to its smallest number, 2^-24


class UpdateGuard(TrainerCallback):
    """
    Collects flags of the micro-batches of an update and checks them at its only synchronization, on all processes.

    The gradient norm of an update is checked with the next update. The last one and the weights are checked when they
    are saved and when training ends.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator.
        beta (`float`):
            Strength of the KL constraint.
        compute_dtype (`torch.dtype`):
            Dtype of the forward pass, for the rounding of rewards.
        checks_start (`bool`):
            Whether the reference is the policy at the start of training, so that the first rewards are 0.
    """

    def __init__(self, accelerator: Accelerator, beta: float, compute_dtype: torch.dtype, checks_start: bool):
        self.accelerator = accelerator
        self.beta = beta
        self.compute_dtype = compute_dtype
        self.checks_start = checks_start
        # (6,): three flags of a non-finite value, largest reward, its tolerance, divergence
        self._worst: Tensor | None = None
        # (2,): flags of a gradient norm of the last update that is not finite, and of one that must not be 0 and is
        self._norm: Tensor | None = None
        self._must_move = self._is_first = False
        self._keeps_gradients = True
        self._skipped = self._skipped_last = 0  # updates, in total and since the last that was made

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # An earlier training of this trainer may have ended within an update
        self._worst = self._norm = None
        self._skipped = self._skipped_last = 0
        self._is_first = True
        optimizer = OptimizerNames(args.optim).value
        self._keeps_gradients = (
            self.accelerator.distributed_type != DistributedType.DEEPSPEED
            and "lomo" not in optimizer  # these optimizers use the gradients during the backward pass
            and not optimizer.endswith("_layerwise")
        )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._is_first and self._keeps_gradients:
            held = [parameter for group in kwargs["optimizer"].param_groups for parameter in group["params"]]
            if all(parameter.grad is None for parameter in held):
                raise ValueError(
                    "The loss does not depend on any parameter of the optimizer, so nothing is trained. Activate the "
                    "adapter to train with `model.set_adapter(name)`, or build the optimizer from the parameters that "
                    "require gradients."
                )
        self._is_first = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not (self._scales_losses and self.accelerator.optimizer_step_was_skipped):
            self._skipped_last = 0
            return
        self._skipped += 1
        self._skipped_last += 1
        if self._skipped_last == _MOST_SKIPPED:
            raise ValueError(self._skipped_message(state.global_step))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.check_made(state.global_step, kwargs["model"])
        if self._skipped and self._skipped == self._skipped_last:
            raise ValueError(self._skipped_message(state.global_step))
        if self._skipped:
            logger.warning(f"{self._skipped} updates were skipped, because their gradients overflowed in fp16.")

    @property
    def _scales_losses(self) -> bool:
        # With loss scaling, gradients may overflow. Then the update is skipped and the scale lowered
        return self.accelerator.mixed_precision == "fp16" and self.accelerator.device.type != "cpu"

    def _skipped_message(self, update: int) -> str:
        return (
            f"The last {self._skipped_last} updates up to {update} were skipped because gradients overflowed in fp16. "
            "Nothing was trained. Set `bf16=True` instead of `fp16=True`, or train in float32."
        )

    def add(self, result: BatchResult, divergence: Tensor | None = None) -> None:
        """Adds a micro-batch, without synchronizing. A `divergence` above 1 means that it has diverged."""
        logps, rewards = result.policy.logps.detach(), result.rewards
        ref_logps = torch.zeros_like(rewards) if result.ref_logps is None else result.ref_logps
        found = [(~values.isfinite().all()).float() for values in (logps, ref_logps, result.losses.detach())]
        found += [rewards.abs().max(), reward_tolerance(ref_logps, self.beta, self.compute_dtype)]
        found.append(torch.zeros_like(found[0]) if divergence is None else divergence)
        worst = torch.stack(found)
        self._worst = worst if self._worst is None else torch.maximum(self._worst, worst)

    def add_gradient_norm(self, norm: Tensor | float | None) -> None:
        """Adds the gradient norm of the current update, without synchronizing."""
        if norm is None:  # not known yet with DeepSpeed
            return
        norm = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)
        norm = norm.detach().float().to(self.accelerator.device)
        overflows = torch.zeros_like(norm) if self._scales_losses else (~norm.isfinite()).float()
        stands_still = self._must_move and self._keeps_gradients
        self._norm = torch.stack([overflows, (norm == 0).float() if stands_still else torch.zeros_like(norm)])
        self._must_move = False

    def check_made(self, update: int, model: nn.Module) -> None:
        """
        Checks the weights after the last update. All processes must call it if the weights are sharded.

        Raises:
            ValueError: If they are not finite, or the last gradient norm was not.
        """
        norm = torch.zeros(2, device=self.accelerator.device) if self._norm is None else self._norm
        flags = torch.cat([norm, (~all_finite(model.parameters())).float().to(norm.device)[None]])
        *norm_flags, broken = (
            worst_of_all_processes(self.accelerator, flags) if is_sharded(self.accelerator) else flags.tolist()
        )
        self._norm = None
        self._judge_norm(update, *norm_flags)
        if broken:
            raise ValueError(
                f"The weights are not finite after update {update}, and are not saved. {_FIX} An older checkpoint may "
                "have finite weights."
            )

    def _judge_norm(self, update: int, overflows: float, stands_still: float) -> None:
        if overflows:
            raise ValueError(
                f"The gradient norm of update {update} is not finite, so it trained nothing or made the weights "
                f"non-finite. {_FIX}"
            )
        if stands_still:
            raise ValueError(
                f"The gradient of update {update} is 0, so nothing is trained: the loss does not change with the "
                "parameters that require gradients. An adapter may be scaled by 0 (`lora_alpha=0`)."
            )

    def finish(self, update: int, explain: Callable[[float], tuple[bool, str]], diverged: str = "") -> None:
        """
        Checks an update before it is made.

        Args:
            update (`int`):
                Index of the update.
            explain (`Callable`):
                Explains rewards above the tolerance: returns whether training must stop, and the cause.
            diverged (`str`, *optional*):
                Message for a batch that has diverged, with the fix.

        Raises:
            ValueError: If a loss is not finite, a batch has diverged, or the reference is not the initial policy.
        """
        assert self._worst is not None, "`add` comes before `finish`"
        norm = self._worst.new_zeros(2) if self._norm is None else self._norm
        found = worst_of_all_processes(self.accelerator, torch.cat([self._worst, norm]))
        *nonfinite, largest, tolerance, divergence, overflows, stands_still = found
        self._worst = self._norm = None
        self._judge_norm(update - 1, overflows, stands_still)
        if any(nonfinite):
            which = ", ".join(name for name, bad in zip(_WATCHED, nonfinite, strict=True) if bad)
            raise ValueError(
                f"Non-finite {which} in update {update}, which was not made. {_FIX} The weights themselves may not be "
                "finite, from the start or since the previous update."
            )
        if divergence > 1:
            raise ValueError(f"Diverged in update {update}, which was not made. {diverged}")
        if self.checks_start:
            self.checks_start, self._must_move = False, True
            if largest > tolerance:
                fatal, cause = explain(tolerance)
                message = f"Implicit rewards before the first update should be 0, found up to {largest:.3g}. {cause}"
                if fatal:
                    raise ValueError(message)
                logger.warning(message)


def all_finite(parameters: Iterable[Any]) -> Tensor:
    """
    Whether the trained weights are finite, without synchronizing. Of sharded weights, only those of this process.

    Args:
        parameters (iterable of `nn.Parameter`):
            Parameters. Only those that require gradients are checked.

    Returns:
        `torch.Tensor` of shape `()`, boolean.
    """
    held = []
    for parameter in parameters:
        if parameter.requires_grad:
            # ZeRO-3 keeps the part of a process here, and an empty tensor in the parameter
            own = parameter.ds_tensor if hasattr(parameter, "ds_id") else parameter
            own = own.to_local() if isinstance(own, DTensor) else own
            if own.numel():
                held.append(own.detach())
    if not held:
        return torch.tensor(True)
    # The largest absolute value needs no copy of a tensor, and keeps NaN and infinity
    return torch.nn.utils.get_total_norm(held, norm_type=float("inf")).isfinite()
