"""Implicit reward of a policy and its reference (Sec. 4 and Eq. 5 of the DPO paper)."""

from torch import Tensor

from .objectives._checks import check_beta, check_logps


__all__ = ["implicit_rewards"]


def implicit_rewards(policy_logps: Tensor, ref_logps: Tensor | None, *, beta: float) -> Tensor:
    r"""
    Implicit reward of each completion, which DPO fits to the preferences.

    $$ \hat r_\theta(x, y) = \beta \log \frac{\pi_\theta(y|x)}{\pi_{ref}(y|x)} $$

    Section 4 of [Rafailov et al. (2023)](https://huggingface.co/papers/2305.18290): Eq. 5 without the term
    \\(\beta \log Z(x)\\), which is the same for every completion of a prompt. Compare rewards within a prompt only.
    Differs from the authors' code: reference-free rewards are \\(\beta \log \pi_\theta(y|x)\\), which the
    reference-free loss optimizes. The authors log \\(\beta \log(\pi_\theta / \pi_{ref})\\) in this case too.

    Args:
        policy_logps (`torch.Tensor` of shape `(B, K)`, float):
            Log-probability of each completion under the policy, summed over its tokens, in nats.
        ref_logps (`torch.Tensor` of shape `(B, K)`, float, or `None`):
            Same under the frozen reference. `None` means no reference (reference-free).
        beta (`float`):
            Strength of the KL constraint that the policy was trained with, > 0, in reward per nat.

    Returns:
        `torch.Tensor` of shape `(B, K)`: rewards, without gradient. float64 if an input is, float32 otherwise.

    Raises:
        ValueError: If `policy_logps` is not `(B, K)`, the two shapes differ, or `beta` is not a finite number above 0.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.rewards import implicit_rewards
    >>> policy = torch.tensor([[-10.0, -18.0, -20.0]])
    >>> ref = torch.tensor([[-12.0, -15.0, -20.0]])
    >>> implicit_rewards(policy, ref, beta=0.1)
    tensor([[ 0.2000, -0.3000,  0.0000]])

    ```
    """
    policy_logps, ref_logps = check_logps(policy_logps.detach(), ref_logps)
    check_beta(beta)
    if ref_logps is None:
        return beta * policy_logps
    return beta * (policy_logps - ref_logps.detach())
