"""
The check that the reference is the policy training starts from: until the first update every implicit reward is 0.

It costs no forward: it looks at the rewards of the first update's own micro-batches.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trl_dpo_ext.reference.policy import ADAPTER_OFF


__all__ = ["explain_start", "reward_tolerance"]


def reward_tolerance(ref_logps: Tensor, beta: float, compute_dtype: torch.dtype) -> Tensor:
    r"""
    Largest implicit reward that rounding can explain, given reference log-probabilities.

    In float32 and float64, 1e-4 and 1e-5 of \\( \beta |\log \pi_{ref}| \\) (log-probabilities of a hundred nats
    differ by about 1e-4 nats between batch shapes); in half precision, 0.05 and 0.02 of it.

    Args:
        ref_logps (`torch.Tensor`):
            Reference log-probabilities, nats.
        beta (`float`):
            Strength of the KL constraint.
        compute_dtype (`torch.dtype`):
            Dtype of the forward.

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
    Says why the rewards are not 0 before the first update.

    Args:
        gap_without_dropout (`Callable`):
            Computes the largest reward of a micro-batch with the policy in evaluation mode.
        tolerance (`float`):
            Largest reward that rounding explains.
        policy ([`~torch.nn.Module`]):
            Policy.
        reference ([`~torch.nn.Module`], *optional*):
            Reference model, if one is in memory.
        kind (`str`):
            Kind of reference, in the words of [`~trl_dpo_ext.reference.policy`].

    Returns:
        `tuple[bool, str]`: Whether training against it makes no sense, and the cause with its fix.
    """
    if gap_without_dropout() <= tolerance:
        return False, (
            "Cause: dropout. With the policy in evaluation mode they are 0: the policy is noisy while it trains and "
            "the reference is not. Set `disable_dropout=True`, and the dropout options of the model's config to 0 "
            "where they are no `nn.Dropout` modules."
        )
    models = [model for model in (policy, reference) if model is not None]
    dtypes = {parameter.dtype for model in models for parameter in model.parameters()}
    if kind != ADAPTER_OFF and len(dtypes) > 1:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return False, f"Cause: precision. Policy and reference hold weights of {found}. Give them one dtype."
    if kind == ADAPTER_OFF:
        return True, (
            "Cause: adapter initialization. The new adapter already changes the policy, so the model with the adapter "
            "switched off is not where training starts. Use an initialization that starts at 0 "
            "(`init_lora_weights=True`), or pass `ref_model=`."
        )
    return True, (
        f"Cause: wrong reference ({kind}). It is another policy than the one that training starts from. Pass the "
        "right one as `ref_model=` (an explicit reference is not checked), or remove a stale reference cache."
    )
