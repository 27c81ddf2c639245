"""The ways to train that are compared."""

from collections.abc import Callable
from functools import partial

from benchmarks.contender import Contender, Task
from benchmarks.floor import floor_contender
from benchmarks.shapes import Shape
from benchmarks.with_ours import our_contender
from benchmarks.with_trl import trl_contender


__all__ = ["CONTENDERS", "default_contenders"]

CONTENDERS: dict[str, Callable[[Task], Contender]] = {
    "trl": partial(trl_contender, cached=False),
    "trl cached": partial(trl_contender, cached=True),
    "ours": partial(our_contender, cached=False),
    "ours padded": partial(our_contender, cached=False, padding_free=False),
    "ours cached": partial(our_contender, cached=True),
    "ours cached in twos": partial(our_contender, cached=True, completions_per_forward=2),
    "floor": floor_contender,
}


def default_contenders(shape: Shape, memory: bool) -> list[str]:
    """Contenders of a shape, unless told: `ours padded` where rows are ragged, `in twos` where memory is measured."""
    left_out = set() if shape.ragged else {"ours padded"}
    if not memory:
        left_out.add("ours cached in twos")
    return [name for name in CONTENDERS if name not in left_out]
