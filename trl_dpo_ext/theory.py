r"""
The closed forms of the DPO paper ([Rafailov et al., 2023](https://huggingface.co/papers/2305.18290)) as functions.

The preference models (Eq. 1 and 18) give the log-probability of an order from rewards. The other functions describe
KL-constrained reward maximization (Eq. 3) on an enumerable set of answers: the optimal policy (Eq. 4), its normalizer
(Eq. 5), and the only reward of each equivalence class that is a log-ratio of policies (Eq. 8 and 9).

Axes: **K** completions in ranked order, best first; **Y** all answers to a prompt; `...` any number of leading axes.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .objectives._checks import check_beta, check_same_shape, compute_dtype


__all__ = ["bradley_terry", "log_partition", "optimal_policy", "plackett_luce", "project_reward"]

NORMALIZATION_TOLERANCE = 1e-4  # nats


def bradley_terry(r1: Tensor, r2: Tensor) -> Tensor:
    r"""
    Log-probability that the first answer is preferred to the second, given their rewards.

    $$ \log p(y_1 \succ y_2 | x) = \log \frac{\exp r_1}{\exp r_1 + \exp r_2} = \log \sigma(r_1 - r_2) $$

    [Eq. 1](https://huggingface.co/papers/2305.18290). It is [`plackett_luce`] with `K = 2`.

    Args:
        r1 (`torch.Tensor` of shape `(...)`, float):
            Reward of the first answer.
        r2 (`torch.Tensor` of shape `(...)`, float):
            Reward of the second answer. Same shape: nothing is broadcast.

    Returns:
        `torch.Tensor` of shape `(...)`: log-probabilities in nats, with gradient. float64 if an input is, float32
        otherwise.

    Raises:
        ValueError: If the two shapes differ.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.theory import bradley_terry
    >>> bradley_terry(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0])).exp()
    tensor([0.8808, 0.5000])

    ```
    """
    check_same_shape("r1", r1, "r2", r2)
    dtype = compute_dtype(r1, r2)
    return logsigmoid(r1.to(dtype) - r2.to(dtype))  # Eq. 1


def plackett_luce(rewards: Tensor) -> Tensor:
    r"""
    Log-probability of the order in which the rewards are given.

    $$ \log p(y_1 \succ \dots \succ y_K | x) = \sum_{k=1}^{K} \log \frac{\exp r_k}{\sum_{j \ge k} \exp r_j} $$

    [Eq. 18](https://huggingface.co/papers/2305.18290), App. A.3. With `K = 2` this is Eq. 1, [`bradley_terry`].

    Args:
        rewards (`torch.Tensor` of shape `(..., K)`, float):
            Rewards in ranked order: the answer observed best first. Memory grows with K squared.

    Returns:
        `torch.Tensor` of shape `(...)`: log-probabilities in nats, with gradient. float64 if the input is, float32
        otherwise.

    Raises:
        ValueError: If `rewards` has no axis or no completion.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.theory import plackett_luce
    >>> plackett_luce(torch.tensor([[0.0, 0.0, 0.0], [2.0, 1.0, 0.0]])).exp()  # equal rewards: 1 of 3! orders
    tensor([0.1667, 0.4863])

    ```
    """
    if rewards.dim() == 0 or rewards.shape[-1] == 0:
        raise ValueError(f"Expected `rewards` of shape (..., K), best first, got {tuple(rewards.shape)}.")
    rewards = rewards.to(compute_dtype(rewards))
    num_completions = rewards.shape[-1]
    # exp r_k / sum_{j >= k} exp r_j = sigmoid(-log sum_{j > k} exp(r_j - r_k)): each completion is compared with all
    # later ones, and the last has probability 1. Differences are exact enough for rewards of any size.
    differences = rewards[..., None, :] - rewards[..., :-1, None]  # (..., K - 1, K), r_j - r_k
    later = torch.ones(num_completions - 1, num_completions, dtype=torch.bool, device=rewards.device).triu(1)
    rest = differences.masked_fill(~later, -torch.inf).logsumexp(-1)  # (..., K - 1)
    return logsigmoid(-rest).sum(-1)  # Eq. 18


def log_partition(ref_logprobs: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    r"""
    Logarithm of the partition function, in nats.

    $$ \log Z(x) = \log \sum_y \pi_{ref}(y|x) \exp\left(\tfrac{1}{\beta} r(x, y)\right) $$

    The normalizer of [Eq. 4](https://huggingface.co/papers/2305.18290), and the last term of Eq. 5,
    \\(r(x, y) = \beta \log(\pi^*(y|x) / \pi_{ref}(y|x)) + \beta \log Z(x)\\). The largest value that the objective of
    Eq. 3 can take is \\(\beta \log Z(x)\\).

    Args:
        ref_logprobs (`torch.Tensor` of shape `(..., Y)`, float):
            Log-probability of every answer under the reference, in nats, normalized. `-inf` for impossible answers.
        rewards (`torch.Tensor` of shape `(..., Y)`, float):
            Reward of every answer, finite.
        beta (`float`):
            Strength of the KL constraint, > 0, in reward per nat.

    Returns:
        `torch.Tensor` of shape `(...)`: log Z, with gradient. float64 if an input is, float32 otherwise.

    Raises:
        ValueError: If the two shapes differ or have no axis, `ref_logprobs` is not normalized (within 1e-4 nats), or
            `beta` is not a finite number above 0.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.theory import log_partition
    >>> ref = torch.tensor([0.5, 0.3, 0.2]).log()
    >>> log_partition(ref, torch.tensor([0.0, 1.0, 2.0]), beta=1.0)
    tensor(1.0272)

    ```
    """
    scores, shift = _tilted_scores(ref_logprobs, rewards, beta)
    return scores.logsumexp(-1) + shift.squeeze(-1) / beta


def optimal_policy(ref_logprobs: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    r"""
    Log-probabilities of the policy that solves KL-constrained reward maximization.

    $$ \pi^*(y|x) = \frac{1}{Z(x)} \pi_{ref}(y|x) \exp\left(\tfrac{1}{\beta} r(x, y)\right)
       = \arg\max_\pi \; E_{y \sim \pi}[r(x, y)] - \beta\, KL[\pi \| \pi_{ref}] $$

    [Eq. 4](https://huggingface.co/papers/2305.18290), the solution of Eq. 3 (App. A.1). Rewards that differ by a
    constant per prompt have the same solution (Lemma 2).

    Args:
        ref_logprobs (`torch.Tensor` of shape `(..., Y)`, float):
            Log-probability of every answer under the reference, in nats, normalized. `-inf` for impossible answers,
            which stay impossible, whatever their reward.
        rewards (`torch.Tensor` of shape `(..., Y)`, float):
            Reward of every answer, finite.
        beta (`float`):
            Strength of the KL constraint, > 0, in reward per nat.

    Returns:
        `torch.Tensor` of shape `(..., Y)`: normalized log-probabilities in nats, with gradient. float64 if an input
        is, float32 otherwise.

    Raises:
        ValueError: If the two shapes differ or have no axis, `ref_logprobs` is not normalized (within 1e-4 nats), or
            `beta` is not a finite number above 0.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.theory import optimal_policy
    >>> ref = torch.tensor([0.5, 0.3, 0.2]).log()
    >>> optimal_policy(ref, torch.tensor([0.0, 1.0, 2.0]), beta=1.0).exp()
    tensor([0.1790, 0.2919, 0.5291])

    ```
    """
    scores, _ = _tilted_scores(ref_logprobs, rewards, beta)
    return scores.log_softmax(-1)  # Eq. 4


def project_reward(ref_logprobs: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    r"""
    Reward of the same equivalence class that a policy can express as its implicit reward.

    $$ f(r)(x, y) = r(x, y) - \beta \log \sum_{y'} \pi_{ref}(y'|x) \exp\left(\tfrac{1}{\beta} r(x, y')\right)
       = \beta \log \frac{\pi^*(y|x)}{\pi_{ref}(y|x)} $$

    [Eq. 8](https://huggingface.co/papers/2305.18290), Sec. 5.1. The result satisfies Eq. 9 (its log Z is 0), gives the
    same preferences and the same optimal policy as `rewards` (Lemmas 1 and 2), and is the only such reward
    (Proposition 1). Projecting it again changes nothing.

    Args:
        ref_logprobs (`torch.Tensor` of shape `(..., Y)`, float):
            Log-probability of every answer under the reference, in nats, normalized. `-inf` for impossible answers,
            which are not part of the sum.
        rewards (`torch.Tensor` of shape `(..., Y)`, float):
            Reward of every answer, finite.
        beta (`float`):
            Strength of the KL constraint, > 0, in reward per nat.

    Returns:
        `torch.Tensor` of shape `(..., Y)`: rewards, with gradient. float64 if an input is, float32 otherwise.

    Raises:
        ValueError: If the two shapes differ or have no axis, `ref_logprobs` is not normalized (within 1e-4 nats), or
            `beta` is not a finite number above 0.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.theory import project_reward
    >>> ref = torch.tensor([0.5, 0.3, 0.2]).log()
    >>> project_reward(ref, torch.tensor([0.0, 1.0, 2.0]), beta=1.0)
    tensor([-1.0272, -0.0272,  0.9728])

    ```
    """
    scores, shift = _tilted_scores(ref_logprobs, rewards, beta)
    return rewards.to(scores.dtype) - shift - beta * scores.logsumexp(-1, keepdim=True)  # Eq. 8


def _tilted_scores(ref_logprobs: Tensor, rewards: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    r"""
    \\(\log \pi_{ref} + (r - s) / \beta\\), `(..., Y)`, and the shift s, `(..., 1)`: the largest reward of a possible
    answer. Without the shift, large rewards hide the reference (r / beta = 1e5 rounds float32 to 0.01 nats).
    """
    check_same_shape("ref_logprobs", ref_logprobs, "rewards", rewards)
    if ref_logprobs.dim() == 0 or ref_logprobs.shape[-1] == 0:
        raise ValueError(f"Expected `ref_logprobs` and `rewards` of shape (..., Y), got {tuple(rewards.shape)}.")
    check_beta(beta)
    dtype = compute_dtype(ref_logprobs, rewards)
    ref_logprobs, rewards = ref_logprobs.to(dtype), rewards.to(dtype)
    _check_normalized(ref_logprobs)
    shift = rewards.detach().masked_fill(ref_logprobs == -torch.inf, -torch.inf).amax(-1, keepdim=True)  # (..., 1)
    return ref_logprobs + (rewards - shift) / beta, shift


def _check_normalized(ref_logprobs: Tensor) -> None:
    totals = ref_logprobs.detach().logsumexp(-1).flatten()  # log of the summed probabilities, one per prompt
    wrong = ~(totals.abs() <= NORMALIZATION_TOLERANCE)  # NaN counts as wrong
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            "Expected `ref_logprobs` to be log-probabilities over the whole answer set, with `logsumexp(-1)` 0 within "
            f"{NORMALIZATION_TOLERANCE:g}, got {float(totals[row]):.6g} for prompt {row} of {totals.numel()}. List "
            "every answer, or apply `log_softmax(-1)` in float32 if the listed answers are the whole set."
        )
