"""A layout as FlashAttention takes it: segments of queries, and the keys that each of them sees."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trl_dpo_ext.shared_prompt.cascade import Cascade, cascade_of
from trl_dpo_ext.shared_prompt.layout import Layout, starts_of, to_device


__all__ = ["Segments", "segments_of"]

# Keys for each token from which two calls without copies are taken: long prompts with four completions or more
_MANY_KEYS = 2


@dataclass(frozen=True)
class Segments:
    """
    Segments of a layout's flattened rows of T tokens. A query segment is causal on its key segment, the last query
    aligned with the last key.

    Query segments are `[prompt + y_1], [y_2], ..., [y_K]` of each group, in the order of the tokens. Their key
    segments are `prompt + y_k`: the queries themselves for the first, gathered for the others. None is empty.

    Args:
        cu_q, cu_k (`torch.Tensor` of shape `(number of segments + 1,)`, int32):
            Where each segment starts, and the end of the last.
        max_q, max_k (`int`):
            Tokens of the longest segment.
        keys (`torch.Tensor` of shape `(cu_k[-1],)`, *optional*):
            Places of the keys among the tokens; `None` where keys are the tokens as they lie.
        cascade ([`~trl_dpo_ext.shared_prompt.cascade.Cascade`], *optional*):
            The two calls that copy no key, where many would be copied.
    """

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    keys: Tensor | None
    cascade: Cascade | None = None


def segments_of(layout: Layout, merges: bool = False) -> Segments:
    """
    Returns the segments of a layout. Made on the host, once for all layers and models.

    Args:
        layout ([`~trl_dpo_ext.shared_prompt.layout.Layout`]):
            Rows.
        merges (`bool`, *optional*, defaults to `False`):
            Whether the attention that takes them can merge two calls, so that it is worth making their segments.

    Returns:
        [`Segments`]
    """
    key = ("segments", merges)
    if key not in layout.made:
        layout.made[key] = _segments_of(layout, merges)
    segments: Segments = layout.made[key]
    return segments


def _segments_of(layout: Layout, merges: bool) -> Segments:
    sizes: list[tuple[int, int]] = []  # queries and keys of each segment
    ranges: list[tuple[int, int]] = []  # of keys: first place and length
    at = 0
    for prompt, completions in layout.segments:
        first = at
        with_prompt = prompt + sum(completions[:1])
        sizes.append((with_prompt, with_prompt))
        ranges.append((first, with_prompt))
        at += with_prompt
        for length in completions[1:]:
            if length:
                sizes.append((length, prompt + length))
                ranges += [(first, prompt), (at, length)]
            at += length
    num_queries, num_keys = torch.tensor([size for size in sizes if size[0]]).T
    start, length = torch.tensor(ranges).T
    # 0, 1, 2, ... from the start of every range
    keys = torch.arange(int(length.sum())) + torch.repeat_interleave(start - (length.cumsum(0) - length), length)
    device = layout.tokens.device
    copies_many = len(keys) >= _MANY_KEYS * int(num_queries.sum())
    return Segments(
        cu_q=starts_of(num_queries, device),
        cu_k=starts_of(num_keys, device),
        max_q=int(num_queries.max()),
        max_k=int(num_keys.max()),
        keys=None if torch.equal(num_queries, num_keys) else to_device(keys, device),
        cascade=cascade_of(layout) if merges and copies_many else None,
    )
