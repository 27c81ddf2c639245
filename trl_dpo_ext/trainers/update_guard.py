"""What must hold before the weights are updated: finite losses and, before the first update, implicit rewards of 0."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.reference.start_check import reward_tolerance
from trl_dpo_ext.trainers.scored_batch import ScoredBatch


__all__ = ["UpdateGuard"]

logger = get_logger(__name__)

_WATCHED = ("policy log-probabilities", "reference log-probabilities", "losses")


class UpdateGuard:
    """
    Watches the micro-batches of an update and judges them at its one synchronisation, on all processes alike.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator.
        beta (`float`):
            Strength of the KL constraint.
        compute_dtype (`torch.dtype`):
            Dtype of the forward, for the rounding that rewards may show.
        checks_start (`bool`):
            Whether the reference is the policy that training starts from, so that the first update's rewards are 0.
    """

    def __init__(self, accelerator: Accelerator, beta: float, compute_dtype: torch.dtype, checks_start: bool):
        self.accelerator = accelerator
        self.beta = beta
        self.compute_dtype = compute_dtype
        self.checks_start = checks_start
        # (6,): three flags of a non-finite value, largest reward, its tolerance, divergence
        self._worst: Tensor | None = None

    def add(self, scored: ScoredBatch, divergence: Tensor | None = None) -> None:
        """Adds a micro-batch, without synchronising; one whose `divergence` is above 1 has run away."""
        logps, rewards = scored.policy.logps.detach(), scored.rewards
        ref_logps = torch.zeros_like(rewards) if scored.ref_logps is None else scored.ref_logps
        found = [(~values.isfinite().all()).float() for values in (logps, ref_logps, scored.losses.detach())]
        found += [rewards.abs().max(), reward_tolerance(ref_logps, self.beta, self.compute_dtype)]
        found.append(torch.zeros_like(found[0]) if divergence is None else divergence)
        worst = torch.stack(found)
        self._worst = worst if self._worst is None else torch.maximum(self._worst, worst)

    def finish(self, update: int, explain: Callable[[float], tuple[bool, str]], diverged: str = "") -> None:
        """
        Judges the update that is about to be made.

        Args:
            update (`int`):
                Its number.
            explain (`Callable`):
                Given the tolerance, says whether rewards that are not 0 make training pointless, and why they are.
            diverged (`str`, *optional*):
                What it means that a batch has run away, and what to do.

        Raises:
            ValueError: If a loss is not finite, a batch has run away, or the reference is not where training starts.
        """
        assert self._worst is not None, "`add` comes before `finish`"
        *nonfinite, largest, tolerance, divergence = self.worst_of_all_processes(self._worst)
        self._worst = None
        if any(nonfinite):
            which = ", ".join(name for name, bad in zip(_WATCHED, nonfinite, strict=True) if bad)
            raise ValueError(
                f"Non-finite {which} in update {update}, which has not been made. Lower `learning_rate` or "
                "`max_grad_norm`, train in float32 or bf16 instead of fp16, or look for a row that the model cannot "
                "score. The weights themselves may not be finite, from the start or since the update before."
            )
        if divergence > 1:
            raise ValueError(f"Diverged in update {update}, which has not been made. {diverged}")
        if self.checks_start:
            self.checks_start = False
            if largest > tolerance:
                fatal, cause = explain(tolerance)
                message = f"Implicit rewards before the first update should be 0, found up to {largest:.3g}. {cause}"
                if fatal:
                    raise ValueError(message)
                logger.warning(message)

    def worst_of_all_processes(self, values: Tensor) -> list[float]:
        """Largest entry of each place of `values`, `(M,)`, over all processes."""
        return self.accelerator.gather(values).view(-1, len(values)).amax(dim=0).tolist()
