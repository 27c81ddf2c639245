"""How long prompts and answers are, how many answers a prompt has, and random token ids of that shape."""

import math
import random
from dataclasses import dataclass, replace


__all__ = ["SHAPES", "Group", "Shape", "draw_batches", "num_tokens", "scale_down"]

# Ids below are the tokenizer's special ones
_FIRST_ID = 3


@dataclass(frozen=True)
class Shape:
    """
    A kind of data.

    Args:
        name (`str`): Name on the command line and in results.
        prompt, answer (`int`): Tokens of a prompt and of each of its answers; their medians where lengths differ.
        completions (`int`): Answers of a prompt, K; even.
        cpu_groups, gpu_groups (`int`): Prompts of a micro-batch.
        sigma (`float`): Standard deviation of the logarithm of a length; 0: all are equally long.
    """

    name: str
    prompt: int
    answer: int
    completions: int
    cpu_groups: int
    gpu_groups: int
    sigma: float = 0.0

    @property
    def lengths(self) -> str:
        """Distribution of the lengths, in words."""
        return f"lognormal, sigma {self.sigma:g}" if self.sigma else "equal"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("hh", 160, 80, 2, cpu_groups=4, gpu_groups=32, sigma=0.7),
        Shape("ultrafeedback", 300, 300, 4, cpu_groups=1, gpu_groups=8, sigma=0.7),
        Shape("long-eight", 1024, 128, 8, cpu_groups=1, gpu_groups=4),
        Shape("very-long", 4096, 512, 2, cpu_groups=1, gpu_groups=2),
        Shape("hh-like", 160, 80, 2, cpu_groups=4, gpu_groups=32),
        Shape("tldr-like", 400, 40, 2, cpu_groups=4, gpu_groups=16),
        Shape("sixteen", 160, 80, 16, cpu_groups=1, gpu_groups=4),
    )
}


@dataclass(frozen=True)
class Group:
    """A prompt with its answers, best first, as token ids."""

    prompt: list[int]
    answers: list[list[int]]


def scale_down(shape: Shape) -> Shape:
    """The same kind of data with rows short enough for a test."""
    return replace(shape, prompt=shape.prompt // 16, answer=max(shape.answer // 16, 3), cpu_groups=2, gpu_groups=2)


def draw_batches(shape: Shape, num_groups: int, vocab_size: int, num_batches: int) -> list[list[Group]]:
    """Micro-batches of random tokens, the same on every call and for every contender."""
    rng = random.Random(f"{shape.name} {vocab_size}")

    def draw(median: int) -> list[int]:
        length = max(round(rng.lognormvariate(math.log(median), shape.sigma)), 2) if shape.sigma else median
        return rng.choices(range(_FIRST_ID, vocab_size), k=length)

    def draw_group() -> Group:
        return Group(draw(shape.prompt), [draw(shape.answer) for _ in range(shape.completions)])

    return [[draw_group() for _ in range(num_groups)] for _ in range(num_batches)]


def num_tokens(batch: list[Group]) -> int:
    """Distinct tokens of a batch: every prompt once, every answer once."""
    return sum(len(group.prompt) + sum(map(len, group.answers)) for group in batch)
