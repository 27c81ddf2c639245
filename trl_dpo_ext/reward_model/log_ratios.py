"""Log-probabilities of the tokens of completions under a policy and its reference."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from torch import Tensor

from trl_dpo_ext.models.precision import PRECISIONS
from trl_dpo_ext.reward_model.scoring_forward import ScoringForward


__all__ = ["ONE_THREAD", "LogRatios", "PolicyAndReference"]

# Scoring changes models for as long as it takes (forward, mode, adapter), and two reward models may have one of them
ONE_THREAD = threading.RLock()


@dataclass
class LogRatios:
    """
    Log-probabilities of N completions with T - 1 scored positions under policy and reference.

    Args:
        numbers (`list[int]`):
            Indices of the completions.
        token_ids (`torch.Tensor` of shape `(N, T - 1)`):
            Tokens.
        mask (`torch.Tensor` of shape `(N, T - 1)`, bool):
            `True` where a token belongs to the completion.
        policy (`torch.Tensor` of shape `(N, T - 1)`):
            Log-probability of each token under the policy, in nats, float32, 0 outside `mask`.
        reference (`torch.Tensor` of shape `(N, T - 1)`, *optional*):
            Same under the reference.
    """

    numbers: list[int]
    token_ids: Tensor
    mask: Tensor
    policy: Tensor
    reference: Tensor | None


class PolicyAndReference:
    """
    Policy and reference of a reward model.

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        reference ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Reference. `None` with a PEFT policy means the reference inside the policy.
        reference_free (`bool`):
            Whether there is no reference.
        mixed_precision (`str`):
            Autocast.
        device (`torch.device` or `str`, *optional*):
            Device of the models.
        longest (`int`, *optional*):
            Number of tokens of the longest prompt with a completion.

    Raises:
        ValueError: If an option is unknown, a reference is missing, or policy and reference are the same model.
    """

    def __init__(
        self,
        policy: Any,
        reference: Any,
        *,
        reference_free: bool,
        mixed_precision: str,
        device: torch.device | str | None,
        longest: int | None,
    ):
        _check_models(policy, reference, reference_free)
        if mixed_precision not in PRECISIONS:
            raise ValueError(
                f"`mixed_precision={mixed_precision!r}` does not exist. Choose one of "
                f"{', '.join(map(repr, PRECISIONS))}."
            )
        models = [policy] if reference is None else [policy, reference]
        if device is None:
            device = policy.device if policy.device.type != "cpu" else PartialState().device
        for model in models:
            if model.device != torch.device(device) and not _is_placed(model):
                model.to(device)
        self.reference_free = reference_free
        with ONE_THREAD:
            self._forwards = [ScoringForward(model, mixed_precision, longest) for model in models]

    @property
    def share_prompts(self) -> bool:
        """Whether both models compute each prompt once for its completions."""
        return all(forward.shares_prompts for forward in self._forwards)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Prepares both models for scoring by one thread, and restores them afterwards."""
        with ONE_THREAD, ExitStack() as stack:
            for forward in self._forwards:
                stack.enter_context(forward.ready())
            yield

    def log_ratios(self, batch: Mapping[str, Tensor], numbers: list[int]) -> LogRatios:
        """
        Runs both models on a batch.

        Args:
            batch (`Mapping[str, torch.Tensor]`):
                Groups `(B, K, T)` of [`~trl_dpo_ext.data.rankings.collator.DataCollatorForRanking`].
            numbers (`list[int]`):
                Indices of the completions in the batch, row by row.
        """
        policy, mask = self._forwards[0].token_logps(batch)
        reference = None
        if not self.reference_free:
            in_policy = len(self._forwards) == 1
            reference, _ = self._forwards[-1].token_logps(batch, reference_adapter=in_policy)
        ratios = LogRatios(numbers, batch["input_ids"][batch["rank_mask"]][:, 1:], mask, policy, reference)
        _check_finite(ratios)
        return ratios


def _check_models(policy: Any, reference: Any, reference_free: bool) -> None:
    for name, model in {"policy": policy, "reference": reference}.items():
        if model is None and name == "reference":
            continue
        if not isinstance(model, torch.nn.Module):
            raise ValueError(
                f"`{name}` is a `{type(model).__name__}`, but a loaded model is expected. Load it, or use "
                "`ImplicitRewardModel.from_pretrained`."
            )
    if reference is None:
        if not reference_free and not is_peft_model(policy):
            raise ValueError(
                "`reference=None` means the policy without its adapter, but this policy has no adapter. Pass the "
                "model that training started from, or `reference_free=True`."
            )
    elif reference_free:
        raise ValueError("`reference` has no effect with `reference_free=True`. Leave one of them out.")
    elif any(module is reference for module in policy.modules()) or any(
        module is policy for module in reference.modules()
    ):
        hint = "Leave `reference` out" if is_peft_model(policy) else "Pass another copy as `reference`"
        raise ValueError(f"`policy` and `reference` are the same model, so all rewards would be 0. {hint}.")


def _is_placed(model: Any) -> bool:
    return hasattr(model, "hf_device_map") or getattr(model, "is_quantized", False)


def _check_finite(ratios: LogRatios) -> None:
    for whose, logps in {"policy": ratios.policy, "reference": ratios.reference}.items():
        if logps is not None and not logps.isfinite().all():
            raise ValueError(
                f"The {whose} returned a log-probability that is not finite. Check its weights, or try "
                "`dtype='float32'` and `mixed_precision='no'`."
            )
