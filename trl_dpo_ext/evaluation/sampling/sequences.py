"""A sample while it is computed: its prompt, its tokens so far, and how many of them are final."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


__all__ = ["Continuation", "padded"]


@dataclass
class Continuation:
    """
    A sample while it is computed.

    Args:
        prompt_id (`int`):
            Index of the prompt.
        prompt_ids (`list[int]`):
            Its tokens.
        sample (`int`):
            Index of the sample among those of the prompt.
        eos_ids (`frozenset[int]`):
            Tokens that end it.
        token_ids (`list[int]`):
            Tokens so far: final ones, then drafted ones.
        num_final (`int`):
            Number of tokens that are final.
        logp (`float`):
            Log-probability of the final tokens, in nats.
    """

    prompt_id: int
    prompt_ids: list[int]
    sample: int
    eos_ids: frozenset[int]
    token_ids: list[int] = field(default_factory=list)
    num_final: int = 0
    logp: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether the last token ends it."""
        return bool(self.token_ids) and self.token_ids[-1] in self.eos_ids

    def is_drafted(self, end: int) -> bool:
        """Whether there are tokens to its end, or `end` of them."""
        return self.has_ended or len(self.token_ids) >= end

    def is_final(self, end: int) -> bool:
        """Whether the same holds, and all its tokens are final."""
        return self.is_drafted(end) and self.num_final == len(self.token_ids)


def padded(rows: Sequence[Sequence[int]], width: int, pad_id: int, *, left: bool = False) -> Tensor:
    """Returns rows of token ids padded to a width, `(N, width)`."""
    ids = torch.full((len(rows), width), pad_id)
    for i, row in enumerate(rows):
        ids[i, width - len(row) if left else 0 : width if left else len(row)] = torch.tensor(row)
    return ids
