"""
Check that the reference is the policy that training starts from: all implicit rewards are 0 before the first update.

It needs no extra forward pass, because it uses the rewards of the micro-batches of the first update.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trl_dpo_ext.reference.policy import ADAPTER_OFF


__all__ = ["explain_start", "reward_tolerance"]


def reward_tolerance(ref_logps: Tensor, beta: float, compute_dtype: torch.dtype) -> Tensor:
    r"""
    Returns the largest implicit reward that rounding can explain.

    In float32 and float64, this is 1e-4 and 1e-5 of \\( \beta |\log \pi_{ref}| \\) (log-probabilities of a hundred
    nats differ by about 1e-4 nats between batch shapes). In half precision it is 0.05 and 0.02 of it.

    Args:
        ref_logps (`torch.Tensor`):
            Log-probabilities under the reference, in nats.
        beta (`float`):
            Strength of the KL constraint.
        compute_dtype (`torch.dtype`):
            Dtype of the forward pass.

    Returns:
        `torch.Tensor`, scalar.
    """
    relative, absolute = (1e-5, 1e-4) if compute_dtype.itemsize >= 4 else (2e-2, 5e-2)
    return absolute + relative * beta * ref_logps.abs().max()


def explain_start(
    gap_without_dropout: Callable[[], float],
    tolerance: float,
    policy: nn.Module,
    reference: nn.Module | None,
    kind: str,
) -> tuple[bool, str]:
    """
    Explains why rewards are not 0 before the first update.

    Args:
        gap_without_dropout (`Callable`):
            Computes the largest reward of a micro-batch with the policy in evaluation mode.
        tolerance (`float`):
            Largest reward that rounding can explain.
        policy ([`~torch.nn.Module`]):
            Policy.
        reference ([`~torch.nn.Module`], *optional*):
            Reference model, if it is in memory.
        kind (`str`):
            Kind of reference, one of [`~trl_dpo_ext.reference.policy`].

    Returns:
        `tuple[bool, str]`: Whether training must stop, and the cause with its fix.
    """
    if gap_without_dropout() <= tolerance:
        return False, (
            "Cause: dropout. Rewards are 0 when the policy is in evaluation mode, because only then it has no "
            "dropout, like the reference. Set `disable_dropout=True`, and set dropout options of the model's config "
            "that do not use `nn.Dropout` to 0."
        )
    models = [model for model in (policy, reference) if model is not None]
    dtypes = {parameter.dtype for model in models for parameter in model.parameters()}
    if kind != ADAPTER_OFF and len(dtypes) > 1:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return False, f"Cause: precision. Policy and reference have weights of {found}. Use the same dtype for both."
    if kind == ADAPTER_OFF:
        return True, (
            "Cause: adapter initialization. The new adapter already changes the policy, so the model without the "
            "adapter is not the policy that training starts from. Use an initialization that starts at 0 "
            "(`init_lora_weights=True`), or pass `ref_model=`."
        )
    return True, (
        f"Cause: wrong reference ({kind}). It is not the policy that training starts from. Pass the right one as "
        "`ref_model=` (an explicit reference is not checked), or remove an outdated reference cache."
    )
