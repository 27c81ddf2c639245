"""Random ranks with ties, and the losses of rewards."""

import torch
from torch import Tensor

from trl_dpo_ext.objectives import plackett_luce_loss


def random_rankings(num_rows: int, num_completions: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Ranks with many ties, and masks that leave 2 to K completions, both (B, K)."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.randint(0, num_completions, (num_rows, num_completions), generator=generator)
    ranks = torch.minimum(ranks, torch.randint(0, num_completions, (num_rows, 1), generator=generator))
    num_present = torch.randint(2, num_completions + 1, (num_rows, 1), generator=generator)
    order = torch.rand(num_rows, num_completions, generator=generator).argsort(-1)
    return ranks, order < num_present


def losses_of_rewards(rewards: Tensor, **kwargs) -> Tensor:
    return plackett_luce_loss(rewards, None, beta=1.0, **kwargs)
