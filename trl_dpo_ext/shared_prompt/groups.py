"""Which rows of a batch share a prompt, and how long each is: all that a layout of their tokens needs to know."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
        places (`Sequence[int]`, *optional*):
            For each row its place among the `B * K` completions of the batch; `None` where all exist.
        most (`int`):
            Completions of the largest group that any process may have in a batch.
        padded_right (`bool`):
            Whether every row's padding comes last. Other rows cannot be laid out anew.
        smallest_id, largest_id (`int`):
            Of all token ids.
        made (`dict`):
            What has been made of these groups: their parts and layouts. Policy and reference share them.
    """

    members: Sequence[Sequence[int]]
    shared: Sequence[int]
    starts: Sequence[int]
    lengths: Sequence[int]
    width: int
    completions: int
    places: Sequence[int] | None
    most: int
    padded_right: bool
    smallest_id: int = 0
    largest_id: int = 0
    made: dict[Hashable, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

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
        Finds the groups of a batch. On a GPU this waits for the device once.

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
            places = None if len(order) == total else order
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

    def first(self, number: int) -> "PromptGroups":
        """Returns the first groups alone, their rows numbered anew."""
        if number >= len(self.members):
            return self
        rows = sorted(row for group in self.members[:number] for row in group)
        number_of = {row: place for place, row in enumerate(rows)}
        return replace(
            self,
            members=[[number_of[row] for row in group] for group in self.members[:number]],
            shared=self.shared[:number],
            starts=[self.starts[row] for row in rows],
            lengths=[self.lengths[row] for row in rows],
            places=None if self.places is None else self.places[: len(rows)],
        )

    def apart(self) -> "PromptGroups":
        """Returns the same rows, each a group of its own: nothing is shared."""
        if "apart" not in self.made:
            rows = [row for group in self.members for row in group]
            shared = [self.starts[row] for row in rows]
            self.made["apart"] = replace(self, members=[[row] for row in rows], shared=shared)
        apart: PromptGroups = self.made["apart"]
        return apart

    def one_row(self) -> "PromptGroups":
        """Returns the first group's first row alone."""
        return replace(self, members=[self.members[0][:1]], shared=self.shared[:1])

    def parts(self, size: int | None) -> list["PromptGroups"]:
        """Splits every group into parts of up to `size` completions: the first parts, the second ones, ..."""
        if size is None or size >= self.largest:
            return [self]
        if size not in self.made:
            self.made[size] = [self._part(first, size) for first in range(0, self.largest, size)]
        parts: list[PromptGroups] = self.made[size]
        return parts

    def _part(self, first: int, size: int) -> "PromptGroups":
        left = [
            (group[first : first + size], shared)
            for group, shared in zip(self.members, self.shared, strict=True)
            if len(group) > first
        ]
        return replace(self, members=[group for group, _ in left], shared=[shared for _, shared in left])
