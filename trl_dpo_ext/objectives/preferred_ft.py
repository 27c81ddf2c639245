"""The Preferred-FT baseline of the DPO paper: supervised fine-tuning on the preferred completion."""

from torch import Tensor

from ._checks import check_logps


__all__ = ["preferred_ft_loss"]


def preferred_ft_loss(policy_logps: Tensor) -> Tensor:
    r"""
    Negative log-likelihood of the preferred completion.

    $$ L = -\log \pi_\theta(y_w|x) $$

    "Preferred-FT" of section 6 of [Rafailov et al. (2023)](https://huggingface.co/papers/2305.18290). Section 4 uses
    it to train a reference if there is no SFT model, \\( \pi_{ref} = \arg\max_\pi E[\log \pi(y_w|x)] \\). The loss is
    a sum over tokens, as in the authors' code.

    Args:
        policy_logps (`torch.Tensor` of shape `(B, K)`, float):
            Log-probability of each completion under the policy, summed over its tokens, in nats. Only column 0, the
            preferred completion, is used.

    Returns:
        `torch.Tensor` of shape `(B,)`: losses in nats, with gradient.

    Raises:
        ValueError: If `policy_logps` is not `(B, K)`.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.objectives import preferred_ft_loss
    >>> preferred_ft_loss(torch.tensor([[-10.0, -18.0]]))
    tensor([10.])

    ```
    """
    policy_logps, _ = check_logps(policy_logps, None)
    return -policy_logps[:, 0]
