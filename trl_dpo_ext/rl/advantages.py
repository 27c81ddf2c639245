"""Token rewards and generalized advantage estimation: tensors in, tensors out."""

from collections.abc import Callable

import torch
from torch import Tensor


__all__ = ["generalized_advantages", "token_rewards", "whitened"]


def token_rewards(log_ratios: Tensor, scores: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    r"""
    Reward of each token: the KL term of Eq. 3 token by token, and the reward of the completion at its last token.

    $$ R_t = -\beta \log \frac{\pi(y_t|x, y_{<t})}{\pi_{ref}(y_t|x, y_{<t})} + [t = T] \, r(x, y) $$

    Eq. 1 of [Stiennon et al. (2020)](https://huggingface.co/papers/2009.01325). The sum over tokens is
    \\( r(x, y) - \beta \log \pi(y|x) / \pi_{ref}(y|x) \\), whose expectation is Eq. 3.

    Args:
        log_ratios (`torch.Tensor` of shape `(B, T)`):
            Log-ratio of policy and reference of each token, in nats.
        scores (`torch.Tensor` of shape `(B,)`):
            Reward of each completion.
        mask (`torch.Tensor` of shape `(B, T)`):
            1 for tokens of the completion including EOS, then 0.
        beta (`float`):
            Weight of the KL term.

    Returns:
        `torch.Tensor` of shape `(B, T)`: rewards, 0 where the mask is 0.
    """
    is_last = mask * (mask.cumsum(1) == mask.sum(1, keepdim=True))  # (B, T)
    return is_last * scores[:, None] - beta * log_ratios * mask


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    r"""
    Generalized advantage estimation.

    $$ A_t = \sum_{l \ge 0} (\gamma \lambda)^l \delta_{t+l}, \qquad \delta_t = R_t + \gamma V_{t+1} - V_t $$

    Eq. 16 of [Schulman et al. (2015)](https://huggingface.co/papers/1506.02438). The value after the last token is 0.

    Args:
        rewards (`torch.Tensor` of shape `(B, T)`):
            Reward of each token.
        values (`torch.Tensor` of shape `(B, T)`):
            Value before each token.
        mask (`torch.Tensor` of shape `(B, T)`):
            1 for tokens of the completion, then 0.
        gamma (`float`):
            Discount per token.
        lam (`float`):
            Weight of later differences: 0 for one-step differences, 1 for the sum of rewards less the value.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(B, T)`: advantages, and returns \\( A_t + V_t \\), the targets of the
        value model. Both are 0 where the mask is 0.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(values)
    later = next_value = torch.zeros_like(values[:, 0])  # (B,)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        later = delta + gamma * lam * later
        advantages[:, t] = later
        next_value = values[:, t]
    return advantages * mask, (advantages + values) * mask


def whitened(values: Tensor, mask: Tensor, sum_over_processes: Callable[[Tensor], Tensor]) -> Tensor:
    """
    Shifts and scales values to mean 0 and variance 1 over all tokens of all processes.

    Args:
        values (`torch.Tensor` of shape `(B, T)`):
            Values.
        mask (`torch.Tensor` of shape `(B, T)`):
            1 for tokens that count.
        sum_over_processes (`Callable`):
            Sums a tensor over processes.

    Returns:
        `torch.Tensor` of shape `(B, T)`, 0 where the mask is 0.
    """
    total, count = sum_over_processes(torch.stack([(values * mask).sum(), mask.sum().to(values)]))
    centered = (values - total / count) * mask
    variance = sum_over_processes((centered**2).sum()) / count
    return centered * (variance + 1e-8).rsqrt()
