"""The unlikelihood baseline of the DPO paper (App. C.3), on sequences and on tokens."""

import math
from numbers import Real

import torch
from torch import Tensor

from ._checks import check_logps, check_same_shape, compute_dtype


__all__ = ["token_unlikelihood_loss", "unlikelihood_loss"]

# Lower limit of 1 - p of a token, as in the code of Welleck et al.
_LEAST = 1e-5


def _check_alpha(alpha: float) -> None:
    if not (isinstance(alpha, Real) and math.isfinite(alpha) and 0 <= alpha <= 1):
        raise ValueError(f"Expected `alpha` to be a number in [0, 1] (the paper sweeps 0.05 to 1), got {alpha!r}.")


def unlikelihood_loss(policy_logps: Tensor, *, alpha: float = 1.0) -> Tensor:
    r"""
    Raises the probability of the preferred completion and lowers that of the other.

    $$ L = -\log \pi_\theta(y_w|x) + \alpha \log \pi_\theta(y_l|x) $$

    The "Unlikelihood" baseline of section 6 and appendix C.3 of [Rafailov et al.
    (2023)](https://huggingface.co/papers/2305.18290). The paper does not say whether log-probabilities are sums or
    means over tokens. Sums are the authors' convention. With \\( \alpha = 1 \\) the gradient is that of DPO without
    its weight \\( \beta\, \sigma(r_l - r_w) \\) (section 4), and models degenerate.
    Differs from Welleck et al. (2019), see [`token_unlikelihood_loss`]. **Unbounded below** for \\( \alpha > 0 \\):
    the second term goes to minus infinity as the probability of the rejected completion goes to 0.

    Args:
        policy_logps (`torch.Tensor` of shape `(B, 2)`, float):
            Log-probability of each completion under the policy, summed over its tokens, in nats. Column 0 is the
            chosen completion, column 1 the rejected one.
        alpha (`float`, *optional*, defaults to `1.0`):
            Weight of the rejected completion, in [0, 1].

    Returns:
        `torch.Tensor` of shape `(B,)`: losses in nats, with gradient.

    Raises:
        ValueError: If `policy_logps` is not `(B, 2)`, or `alpha` is out of its range.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.objectives import unlikelihood_loss
    >>> unlikelihood_loss(torch.tensor([[-10.0, -18.0]]), alpha=0.5)
    tensor([1.])

    ```
    """
    policy_logps, _ = check_logps(policy_logps, None, pairs=True)
    _check_alpha(alpha)
    return alpha * policy_logps[:, 1] - policy_logps[:, 0]


def token_unlikelihood_loss(
    chosen_logps: Tensor, rejected_token_logps: Tensor, rejected_mask: Tensor, *, alpha: float = 1.0
) -> Tensor:
    r"""
    Unlikelihood on tokens: lowers the probability of every token of the rejected completion.

    $$ L = -\log \pi_\theta(y_w|x) - \alpha \sum_t \log \big(1 - \pi_\theta(y_{l,t} | x, y_{l,<t})\big) $$

    The sequence-level loss of [Welleck et al. (2019)](https://huggingface.co/papers/1908.04319), with the rejected
    completion as negative candidates. Bounded below by 0. As in their code, \\( 1 - \pi_\theta \\) is at least 1e-5,
    and the gradient is 0 at this limit.

    Args:
        chosen_logps (`torch.Tensor` of shape `(B,)`, float):
            Log-probability of the chosen completion, summed over its tokens, in nats.
        rejected_token_logps (`torch.Tensor` of shape `(B, T)`, float):
            Log-probability of each token of the rejected completion, in nats.
        rejected_mask (`torch.Tensor` of shape `(B, T)`, bool):
            `True` at the tokens of the rejected completion.
        alpha (`float`, *optional*, defaults to `1.0`):
            Weight of the rejected completion, in [0, 1].

    Returns:
        `torch.Tensor` of shape `(B,)`: losses in nats, with gradient.

    Raises:
        ValueError: If the shapes do not match, or `alpha` is out of range.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.objectives import token_unlikelihood_loss
    >>> half = torch.tensor([[0.5, 0.5]]).log()
    >>> token_unlikelihood_loss(torch.tensor([-1.0]), half, torch.tensor([[True, False]]))  # 1 + log 2
    tensor([1.6931])

    ```
    """
    check_same_shape("rejected_token_logps", rejected_token_logps, "rejected_mask", rejected_mask)
    if chosen_logps.shape != rejected_token_logps.shape[:1] or rejected_token_logps.dim() != 2:
        raise ValueError(
            f"Expected `chosen_logps` of shape (B,) and `rejected_token_logps` of shape (B, T), got "
            f"{tuple(chosen_logps.shape)} and {tuple(rejected_token_logps.shape)}."
        )
    _check_alpha(alpha)
    dtype = compute_dtype(chosen_logps, rejected_token_logps)
    # 1 - p without the rounding of p near 0. Masked values are replaced first, because log 0 is not finite
    logps = rejected_token_logps.to(dtype).masked_fill(~rejected_mask, -1.0)
    unlikelihood = torch.log((-torch.expm1(logps)).clamp(min=_LEAST)).masked_fill(~rejected_mask, 0.0)
    return -chosen_logps.to(dtype) - alpha * unlikelihood.sum(dim=1)
