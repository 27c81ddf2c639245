"""Which rows of a batch share a prompt, and how long each is: all that a layout of their tokens needs to know."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


__all__ = ["PromptGroups"]


@dataclass(frozen=True)
class PromptGroups:
    """
    The rows of a batch, each a prompt with a completion, grouped by prompt. It lives on the host.

    Args:
        members (`Sequence[Sequence[int]]`):
            For each group the numbers of its rows.
        shared (`Sequence[int]`):
            For each group the number of tokens that its rows have in common at their start, at most the prompt's.
        starts, lengths (`Sequence[int]`):
            For each row where its completion starts, and its number of tokens.
        width (`int`):
            Tokens of the batch's rows, padding included: T.
        completions (`int`):
            Completions that a group has place for: K.
        places (`torch.Tensor` of shape `(N,)`, *optional*):
            For each row its place among the `B * K` completions of the batch; `None` where all exist.
        most (`int`):
            Completions of the largest group that any process may have in a batch.
        padded_right (`bool`):
            Whether every row's padding comes last. Other rows cannot be laid out anew.
        smallest_id, largest_id (`int`):
            Of all token ids.
    """

    members: Sequence[Sequence[int]]
    shared: Sequence[int]
    starts: Sequence[int]
    lengths: Sequence[int]
    width: int
    completions: int
    places: Tensor | None
    most: int
    padded_right: bool
    smallest_id: int = 0
    largest_id: int = 0

    @classmethod
    def find(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
        stacked: bool,
        most: int | None = None,
    ) -> "PromptGroups":
        """
        Finds the groups of a batch, at one synchronization.

        Args:
            input_ids (`torch.Tensor` of shape `(B, K, T)`):
                Prompts with completions.
            attention_mask (`torch.Tensor` of shape `(B, K, T)`):
                1 at tokens; 0 throughout where a completion does not exist.
            completion_mask (`torch.Tensor` of shape `(B, K, T)`):
                1 at the tokens of completions.
            stacked (`bool`):
                Whether rows are numbered `[all first completions; all second ones; ...]`, as TRL stacks pairs, or
                group by group, those left out that do not exist.
            most (`int`, *optional*):
                Completions of the largest group of any process's batches. Defaults to K.
        """
        groups, completions, width = input_ids.shape
        lengths = attention_mask.sum(dim=-1)  # (B, K)
        exists = lengths > 0
        ends = torch.where(exists, lengths, width)
        is_completion = completion_mask.bool()
        starts = torch.where(is_completion.any(dim=-1), is_completion.int().argmax(dim=-1), ends)  # (B, K)
        same = ((input_ids == input_ids[:, :1]) | ~exists[..., None]).all(dim=1)  # (B, T)
        common = torch.minimum(same.int().cummin(dim=-1).values.sum(dim=-1), starts.amin(dim=1))  # (B,)
        padded_right = (attention_mask[..., 1:] <= attention_mask[..., :-1]).all()
        ids = torch.stack(input_ids.aminmax())
        found = torch.cat([common, starts.flatten(), lengths.flatten(), ids, padded_right[None]]).tolist()

        shared, found = found[:groups], found[groups:]
        total = groups * completions
        starts_of, lengths_of = found[:total], found[total : 2 * total]
        if stacked:
            members = [[k * groups + b for k in range(completions)] for b in range(groups)]
            order = [b * completions + k for k in range(completions) for b in range(groups)]
            places = None
        else:
            order = [place for place in range(total) if lengths_of[place]]
            row_of = {place: row for row, place in enumerate(order)}
            members = [
                [row_of[b * completions + k] for k in range(completions) if lengths_of[b * completions + k]]
                for b in range(groups)
            ]
            places = None if len(order) == total else torch.tensor(order).to(input_ids.device, non_blocking=True)
        return cls(
            members=members,
            shared=shared,
            starts=[starts_of[place] for place in order],
            lengths=[lengths_of[place] for place in order],
            width=width,
            completions=completions,
            places=places,
            most=most or completions,
            padded_right=bool(found[-1]),
            smallest_id=found[-3],
            largest_id=found[-2],
        )

    @property
    def largest(self) -> int:
        """Completions of the group that has most."""
        return max(map(len, self.members))

    @property
    def sizes(self) -> list[int]:
        """Distinct tokens that predict something, of each group."""
        return [
            shared + sum(max(self.lengths[row] - 1 - shared, 0) for row in group)
            for group, shared in zip(self.members, self.shared, strict=True)
        ]

    def apart(self) -> "PromptGroups":
        """Returns the same rows, each a group of its own: nothing is shared."""
        rows = [row for group in self.members for row in group]
        return replace(self, members=[[row] for row in rows], shared=[self.starts[row] for row in rows])

    def one_row(self) -> "PromptGroups":
        """Returns the first group's first row alone."""
        return replace(self, members=[self.members[0][:1]], shared=self.shared[:1])

    def chunks(self, size: int | None) -> list["PromptGroups"]:
        """Splits every group into parts of up to `size` completions: the first parts, the second ones, ..."""
        if size is None or size >= self.largest:
            return [self]
        parts = []
        for first in range(0, self.largest, size):
            left = [
                (group[first : first + size], shared)
                for group, shared in zip(self.members, self.shared, strict=True)
                if len(group) > first
            ]
            parts.append(replace(self, members=[group for group, _ in left], shared=[shared for _, shared in left]))
        return parts
