"""The ways to train that are compared."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

from benchmarks.contender import Contender
from benchmarks.floor import floor_contender
from benchmarks.shapes import Shape
from benchmarks.with_ours import our_contender
from benchmarks.with_trl import trl_contender


__all__ = ["CONTENDERS", "Way", "default_contenders", "missing_packages", "with_reference_of"]

# From this number of answers on TRL's pairs take minutes a step
_MANY = 8


@dataclass(frozen=True)
class Way:
    """
    A way to train.

    Args:
        build (`Callable`): Builds the contender for a task.
        devices (`tuple[str, ...]`): Where it is measured, unless told.
        package (`str`, *optional*): Package that it needs and that is not installed with the others.
    """

    build: Callable[..., Contender]
    devices: tuple[str, ...]
    package: str | None = None


_EVERYWHERE, _GPU = ("cpu", "cuda"), ("cuda",)
_WAYS = {
    "trl": Way(trl_contender, _EVERYWHERE),
    "trl cudnn off": Way(partial(trl_contender, cudnn=False), _GPU),
    "trl flash": Way(partial(trl_contender, attention="flash_attention_2"), _GPU, "flash_attn"),
    # TRL's padded rows, with this package's tiles of the LM head
    "ours padded": Way(partial(our_contender, share_prompt=False, padding_free=False), _EVERYWHERE),
    # Separate rows behind each other, without padding
    "ours packed": Way(partial(our_contender, share_prompt=False, padding_free=True), _EVERYWHERE),
    "ours": Way(our_contender, _EVERYWHERE),
    "ours dense": Way(partial(our_contender, attention_path="dense"), _GPU),
    "ours flex": Way(partial(our_contender, attention="flex_attention", attention_path="flex"), _GPU),
    "ours varlen": Way(partial(our_contender, attention_path="varlen"), _GPU),
    "ours flash": Way(
        partial(our_contender, attention="flash_attention_2", attention_path="flash"), _GPU, "flash_attn"
    ),
    "ours compiled": Way(partial(our_contender, attention_path="varlen", torch_compile=True), _GPU),
    "ours liger": Way(partial(our_contender, attention_path="varlen", use_liger_kernel=True), _GPU, "liger_kernel"),
    "ours in twos": Way(partial(our_contender, completions_per_forward=2), ()),
}


def with_reference_of(name: str, other: str) -> str:
    """A contender's name, with its reference computed before if that of the contender `other` is."""
    who, _, how = name.partition(" ")
    return " ".join(filter(None, (who, "cached" if "cached" in other else "", how)))


CONTENDERS = {
    with_reference_of(name, reference): replace(way, build=partial(way.build, cached=reference == "cached"))
    for name, way in _WAYS.items()
    for reference in ("live", "cached")
} | {"floor": Way(floor_contender, ("cpu",))}


def default_contenders(shape: Shape, device: str, memory: bool = False) -> list[str]:
    """
    Contenders of a shape, unless told: those of the device whose package is installed, without TRL at K >= 8.

    Where memory is measured these are TRL, ours, and ours two answers at a time.
    """
    if memory:
        return ["trl", "trl cached", "ours", "ours cached", "ours cached in twos", "floor"]
    missing = missing_packages(device)
    return [
        name
        for name, way in CONTENDERS.items()
        if device in way.devices
        and way.package not in missing
        and not (name.startswith("trl") and shape.completions >= _MANY)
    ]


def missing_packages(device: str) -> dict[str, list[str]]:
    """The packages that are not installed, each with the contenders of the device that are left out for it."""
    left_out: dict[str, list[str]] = {}
    for name, way in CONTENDERS.items():
        if way.package is not None and device in way.devices and find_spec(way.package) is None:
            left_out.setdefault(way.package, []).append(name)
    return left_out
