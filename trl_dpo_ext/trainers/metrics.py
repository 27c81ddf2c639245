"""Exact means: sums and weights are kept apart until a figure is logged, then added up over all processes at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from trl_dpo_ext.logps import stacked_to_pairs
from trl_dpo_ext.trainers.scored_batch import ScoredBatch


__all__ = ["MeanMeter", "preference_sums"]


class MeanMeter:
    """
    Weighted means over any number of micro-batches and processes.

    A mean of micro-batch means is another number when batches differ in size; here every example (or token) counts
    once. Nothing is synchronised until [`means`] is called.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.trainers.metrics import MeanMeter

    >>> meter = MeanMeter()
    >>> meter.add({"loss": (torch.tensor(6.0), torch.tensor(3))})  # three examples, sum 6
    >>> meter.add({"loss": (torch.tensor(1.0), torch.tensor(1))})
    >>> meter.means(lambda sums: sums)
    {'loss': 1.75}

    ```
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # name -> (2,): sum of the values, sum of the weights

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, sums: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Adds, for each name, a sum of values and the sum of their weights (scalars, on any one device)."""
        for name, (total, weight) in sums.items():
            # float64: a log window may hold millions of tokens. MPS has none
            dtype = torch.float32 if total.device.type == "mps" else torch.float64
            entry = torch.stack([total.detach().to(dtype), weight.detach().to(dtype)])
            self._sums[name] = self._sums[name] + entry if name in self._sums else entry

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """
        Returns the means so far and forgets them.

        Args:
            reduce (`Callable`):
                Adds a tensor up over all processes; called once.

        Returns:
            `dict[str, float]`: Means in the order of first use; names of weight 0 are left out.
        """
        if not self._sums:
            return {}
        names = list(self._sums)
        totals = reduce(torch.stack([self._sums[name] for name in names])).tolist()  # (M, 2)
        self._sums = {}
        return {name: total / weight for name, (total, weight) in zip(names, totals, strict=True) if weight}


def preference_sums(scored: ScoredBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """
    Returns a batch's figures by TRL's names, as sums and weights.

    Losses, rewards and log-probabilities weigh by example; entropy, logits and token accuracy by token.
    """
    weights = scored.weights  # (B,)
    policy = scored.policy
    logps = stacked_to_pairs(policy.logps)  # (B, 2)
    rewards = scored.rewards
    mask = stacked_to_pairs(policy.mask) * weights[:, None, None]  # (B, 2, T - 1)
    chosen_mask, rejected_mask = mask.unbind(dim=1)
    mean_logits = stacked_to_pairs(policy.mean_logits)

    by_example = {
        "loss": scored.losses,
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/accuracies": rewards[:, 0] > rewards[:, 1],
        "rewards/margins": rewards[:, 0] - rewards[:, 1],
        "logps/chosen": logps[:, 0],
        "logps/rejected": logps[:, 1],
    }
    if policy.aux_loss is not None:
        by_example["aux_loss"] = policy.aux_loss.expand_as(weights)
    by_token = {
        "entropy": (stacked_to_pairs(policy.entropy), mask),
        "logits/chosen": (mean_logits[:, 0], chosen_mask),
        "logits/rejected": (mean_logits[:, 1], rejected_mask),
        "mean_token_accuracy": (stacked_to_pairs(policy.is_top1)[:, 0], chosen_mask),
    }
    sums = {name: ((values * weights).sum(), weights.sum()) for name, values in by_example.items()}
    return sums | {name: ((values * where).sum(), where.sum()) for name, (values, where) in by_token.items()}
