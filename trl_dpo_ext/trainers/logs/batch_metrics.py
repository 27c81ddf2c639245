"""Metrics of a batch as sums, for pairs, rankings and single completions."""

import torch
from torch import Tensor

from trl_dpo_ext.metrics.comparisons import comparison_sums, pairs_of_ranking
from trl_dpo_ext.metrics.correlation import within_group_correlation_sums
from trl_dpo_ext.metrics.divergence import token_kl
from trl_dpo_ext.metrics.rankings import best_and_worst, best_and_worst_means, kendall_tau_b, mean_over
from trl_dpo_ext.metrics.sums import Sums, means
from trl_dpo_ext.trainers.forward.batch_result import BatchResult


__all__ = ["batch_distributions", "batch_metrics"]


def batch_metrics(result: BatchResult, largest: int) -> dict[str, Sums]:
    """
    Returns the metrics of a batch as sums. They include TRL's, under TRL's names. See the table in `docs/metrics.md`.

    "Chosen" and "rejected" are the best and the worst completion, or the mean of those that tie. Losses, rewards and
    log-probabilities are means over examples; KL, entropy, logits and token accuracy are means over tokens.

    Args:
        result ([`~trl_dpo_ext.trainers.forward.batch_result.BatchResult`]):
            The batch.
        largest (`int`):
            Number of completions in the largest group of all processes. If it is 1, nothing is compared.

    Returns:
        `dict[str, Sums]`: the same names on every process.
    """
    best, worst = best_and_worst(result.ranks, result.exists)
    metrics = _of_examples(result, best, worst, largest) | _of_tokens(result, best, worst, largest)
    if largest > 1:
        metrics |= _of_comparisons(result, best, worst)
    if result.order_losses is not None:
        metrics |= _of_orders(result, best, worst, largest)
    return metrics


def _of_examples(result: BatchResult, best: Tensor, worst: Tensor, largest: int) -> dict[str, Sums]:
    ends = {"chosen": best} | ({"rejected": worst} if largest > 1 else {})
    logps, aux_loss = result.policy.logps.detach(), result.policy.aux_loss
    values = {"loss": result.losses}
    for name, where in ends.items():
        values[f"rewards/{name}"] = mean_over(result.rewards, where)
        values[f"logps/{name}"] = mean_over(logps, where)
        if result.ref_logps is not None:
            values[f"logps/{name}_drift"] = mean_over(logps - result.ref_logps, where)
    if aux_loss is not None:
        values["aux_loss"] = aux_loss.expand_as(result.weights)
    return means(values, result.weights)


def _of_tokens(result: BatchResult, best: Tensor, worst: Tensor, largest: int) -> dict[str, Sums]:
    policy = result.policy
    tokens = policy.mask * result.weights[:, None, None]  # (B, K, T - 1)
    everywhere = {"entropy": policy.entropy}
    if result.ref_token_logps is not None:
        everywhere["kl_per_token"] = token_kl(policy.token_logps, result.ref_token_logps)
    at_best = {"logits/chosen": policy.mean_logits, "mean_token_accuracy": policy.is_top1}
    sums = means(everywhere, tokens) | means(at_best, tokens * best[:, :, None])
    return sums | (means({"logits/rejected": policy.mean_logits}, tokens * worst[:, :, None]) if largest > 1 else {})


def _of_comparisons(result: BatchResult, best: Tensor, worst: Tensor) -> dict[str, Sums]:
    rewards, lengths = result.rewards, result.policy.mask.sum(dim=2)  # (B, K)
    margins = mean_over(rewards, best) - mean_over(rewards, worst)
    compares = _compares(result)
    pairs = pairs_of_ranking(rewards, lengths, result.ranks, result.exists, compares)
    correlation = within_group_correlation_sums(rewards, lengths, result.exists, result.weights)
    return (
        means({"rewards/margins": margins}, compares)
        | comparison_sums(pairs)
        | {"rewards/length_correlation": correlation}
    )


def _of_orders(result: BatchResult, best: Tensor, worst: Tensor, largest: int) -> dict[str, Sums]:
    rewards, ranks, exists, weights = result.rewards, result.ranks, result.exists, result.weights
    margins = mean_over(rewards, best) - mean_over(rewards, worst)
    best_reward = rewards.masked_fill(~best, -torch.inf).amax(dim=1)
    other_reward = rewards.masked_fill(~exists | best, -torch.inf).amax(dim=1)
    assert result.order_losses is not None
    sums = means({"rewards/order_probabilities": torch.exp(-result.order_losses)}, weights)
    comparing = {
        # The margins between neighboring ranks add up to the margin between the best and the worst
        "rewards/margins_neighbors": margins / result.worst_rank.clamp(min=1),
        "rewards/top1_accuracies": best_reward > other_reward,
        "rewards/kendall_tau": kendall_tau_b(rewards, ranks, exists),
    }
    sums |= means(comparing, _compares(result))
    for rank in range(largest):
        there = exists & (ranks == rank)
        sums |= means({f"rewards/rank_{rank + 1}": rewards}, there * weights[:, None])
    return sums


def _compares(result: BatchResult) -> Tensor:
    # Prompts with one completion, or whose completions all tie, only occur in prediction
    return result.weights * (result.worst_rank > 0)


def batch_distributions(result: BatchResult, largest: int) -> dict[str, Tensor]:
    """The values `(B,)` whose distribution an evaluation shows; NaN for an example without a comparison."""
    chosen, rejected = best_and_worst_means(result.rewards, result.ranks, result.exists)
    if largest == 1:
        return {"rewards/chosen": chosen}
    margins = (chosen - rejected).masked_fill(result.worst_rank == 0, torch.nan)
    return {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": margins}
