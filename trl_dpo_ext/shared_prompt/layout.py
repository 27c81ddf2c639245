"""Rows of distinct tokens: each prompt once, then what only one completion has, several groups to a row."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trl_dpo_ext.shared_prompt.groups import PromptGroups


__all__ = ["Layout", "lay_out", "pack", "starts_of", "to_device"]


@dataclass
class Layout:
    """
    Where every distinct token of a batch `(N, T)` goes in R rows of S tokens, and which of them predict what.

    A group is laid out as `prompt, y_1 without its last token, y_2 without its last token, ...`. The last prompt
    token predicts the first token of every completion; the last token of a completion predicts nothing and is left
    out. Positions count on from the prompt in every completion.

    Args:
        tokens, positions, groups, branches (`torch.Tensor` of shape `(R, S)`):
            Of each token: its place in the flattened batch, its position in its sequence, its group (-1: padding) and
            its branch (0: prompt, else the completion's number in its group).
        scored, targets, labels (`torch.Tensor` of shape `(M,)`):
            Tokens that predict, as places in the flattened rows; what they predict, as places in the flattened
            `(N, T - 1)` of shifted log-probabilities; and the predicted tokens' places in the flattened batch.
        segments (`tuple[tuple[int, tuple[int, ...]], ...]`):
            Lengths, in order, of each prompt and of its completions. Padding counts as a prompt of its own.
        made (`dict`):
            What has been made of this layout: masks and plans of attention. All layers share them.
    """

    tokens: Tensor
    positions: Tensor
    groups: Tensor
    branches: Tensor
    scored: Tensor
    targets: Tensor
    labels: Tensor
    segments: tuple[tuple[int, tuple[int, ...]], ...]
    made: dict[Hashable, Any] = field(default_factory=dict, repr=False)


def pack(sizes: Sequence[int], budget: int | None) -> list[list[int]]:
    """
    Puts groups of given sizes in rows of up to `budget` tokens, largest first, each in the first row it fits in.

    Args:
        sizes (`Sequence[int]`):
            Tokens of each group.
        budget (`int`, *optional*):
            Tokens of a row; a larger group has a row of its own. `None`: all in one row; 0: each in its own.

    Returns:
        `list[list[int]]`: For each row the numbers of its groups.

    Example:
    ```python
    >>> from trl_dpo_ext.shared_prompt.layout import pack

    >>> pack([3, 9, 4, 2], budget=6)
    [[1], [2, 3], [0]]

    ```
    """
    if budget is None:
        return [list(range(len(sizes)))]
    rows: list[list[int]] = []
    left: list[int] = []
    for group in sorted(range(len(sizes)), key=lambda group: -sizes[group]):
        fits = next((row for row, space in enumerate(left) if sizes[group] <= space), None)
        if fits is None:
            rows.append([group])
            left.append(budget - sizes[group])
        else:
            rows[fits].append(group)
            left[fits] -= sizes[group]
    return [sorted(row) for row in rows]


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies values from the host, on a GPU without waiting for it."""
    # From other memory than pinned one the copy would wait
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def starts_of(lengths: Tensor, device: torch.device) -> Tensor:
    """Returns where segments of these lengths start, and the end of the last, int32 as FlashAttention takes them."""
    return to_device(F.pad(lengths.cumsum(0), (1, 0)).int(), device)


def lay_out(batch: PromptGroups, budget: int | None, device: torch.device, multiple: int = 1) -> Layout:
    """
    Lays the tokens of a batch out in rows, once for all models. Loops over completions, never over tokens.

    Args:
        batch ([`~trl_dpo_ext.shared_prompt.groups.PromptGroups`]):
            Groups of rows, padded on the right.
        budget (`int`, *optional*):
            Tokens of a row, as in [`pack`].
        device (`torch.device`):
            Where the layout's tensors go.
        multiple (`int`, *optional*, defaults to 1):
            What the tokens of a row are a multiple of.
    """
    key = ("layout", budget, device, multiple)
    if key not in batch.made:
        batch.made[key] = _lay_out(batch, budget, device, multiple)
    layout: Layout = batch.made[key]
    return layout


def _lay_out(batch: PromptGroups, budget: int | None, device: torch.device, multiple: int) -> Layout:
    sizes = batch.sizes
    rows = pack(sizes, budget)
    width = max(sum(sizes[group] for group in row) for row in rows)
    width = -(-width // multiple) * multiple

    pieces: list[tuple[int, ...]] = []  # source, destination, length, position, group, branch, target of each segment
    forks: list[tuple[int, int]] = []  # last prompt token, and the target that it predicts, of each completion
    segments: list[tuple[int, tuple[int, ...]]] = []
    for number, row in enumerate(rows):
        at = number * width
        for group in row:
            members, shared = batch.members[group], batch.shared[group]
            fork = at + shared - 1
            pieces.append((members[0] * batch.width, at, shared, 0, group, 0, 0))
            at += shared
            lengths = []
            for branch, member in enumerate(members, start=1):
                target = member * (batch.width - 1) + shared  # of the completion's own first token
                length = max(batch.lengths[member] - 1 - shared, 0)
                pieces.append((member * batch.width + shared, at, length, shared, group, branch, target))
                if shared and batch.lengths[member] > shared:
                    forks.append((fork, target - 1))
                at += length
                lengths.append(length)
            segments.append((shared, tuple(lengths)))
        if at < (number + 1) * width:
            segments.append(((number + 1) * width - at, ()))

    source, destination, length, position, group, branch, target = torch.tensor(pieces).T  # (number of segments,)
    # Counts 0, 1, 2, ... within every segment
    steps = torch.arange(int(length.sum())) - torch.repeat_interleave(length.cumsum(0) - length, length)

    def spread(starts: Tensor, counts: bool = True) -> Tensor:
        values = torch.repeat_interleave(starts, length)
        return values + steps if counts else values

    places = spread(destination)
    by_token = torch.zeros(4, len(rows) * width, dtype=torch.long)
    by_token[2] = -1
    by_token[:, places] = torch.stack(
        [spread(source), spread(position), spread(group, counts=False), spread(branch, counts=False)]
    )
    own = spread(branch, counts=False) > 0
    at_forks, fork_targets = torch.tensor(forks, dtype=torch.long).view(-1, 2).T
    scored = torch.cat([at_forks, places[own]])
    targets = torch.cat([fork_targets, spread(target)[own]])
    labels = targets + targets.div(batch.width - 1, rounding_mode="floor") + 1

    tokens, positions, groups, branches = to_device(by_token, device).view(4, len(rows), width)
    scored, targets, labels = (to_device(values, device) for values in (scored, targets, labels))
    return Layout(tokens, positions, groups, branches, scored, targets, labels, tuple(segments))
