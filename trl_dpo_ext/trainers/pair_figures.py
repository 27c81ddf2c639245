"""Figures of preference pairs, as sums."""

import torch
from torch import Tensor

from trl_dpo_ext.logps import stacked_to_pairs
from trl_dpo_ext.metrics.comparisons import Comparisons, comparison_sums
from trl_dpo_ext.metrics.correlation import within_group_correlation_sums
from trl_dpo_ext.metrics.divergence import token_kl
from trl_dpo_ext.metrics.sums import Sums, means
from trl_dpo_ext.trainers.scored_batch import ScoredBatch


__all__ = ["pair_distributions", "pair_sums"]


def pair_sums(scored: ScoredBatch) -> dict[str, Sums]:
    """
    Returns a batch's figures: TRL's, by TRL's names, and more. See the table in the README.

    Losses, rewards and log-probabilities weigh by example; KL, entropy, logits and token accuracy by token.
    """
    weights, policy, rewards = scored.weights, scored.policy, scored.rewards  # (B,); (B, 2)
    logps = stacked_to_pairs(policy.logps)  # (B, 2)
    mask = stacked_to_pairs(policy.mask)  # (B, 2, T - 1)
    lengths = mask.sum(dim=2)  # (B, 2)
    margins = rewards[:, 0] - rewards[:, 1]

    by_example = {
        "loss": scored.losses,
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/margins": margins,
        "logps/chosen": logps[:, 0],
        "logps/rejected": logps[:, 1],
    }
    if scored.ref_logps is not None:
        drift = logps - scored.ref_logps
        by_example |= {"logps/chosen_drift": drift[:, 0], "logps/rejected_drift": drift[:, 1]}
    if policy.aux_loss is not None:
        by_example["aux_loss"] = policy.aux_loss.expand_as(weights)
    sums = means(by_example, weights)
    sums |= comparison_sums(Comparisons(margins, lengths[:, 0] - lengths[:, 1], weights))
    exists = torch.ones_like(lengths, dtype=torch.bool)
    sums["rewards/length_correlation"] = within_group_correlation_sums(rewards, lengths, exists, weights)

    tokens = mask * weights[:, None, None]
    both = {"entropy": stacked_to_pairs(policy.entropy)}
    if scored.ref_token_logps is not None:
        both["kl_per_token"] = stacked_to_pairs(token_kl(policy.token_logps, scored.ref_token_logps))
    mean_logits: Tensor = stacked_to_pairs(policy.mean_logits)
    chosen = {"logits/chosen": mean_logits[:, 0], "mean_token_accuracy": stacked_to_pairs(policy.is_top1)[:, 0]}
    return (
        sums
        | means(both, tokens)
        | means(chosen, tokens[:, 0])
        | means({"logits/rejected": mean_logits[:, 1]}, tokens[:, 1])
    )


def pair_distributions(scored: ScoredBatch) -> dict[str, Tensor]:
    """The values `(B,)` whose distribution an evaluation shows."""
    chosen, rejected = scored.rewards.unbind(dim=1)
    return {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}
