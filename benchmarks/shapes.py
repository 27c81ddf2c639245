"""How long prompts and answers are, how many answers a prompt has, and random token ids of that shape."""

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
        prompt, answer (`int`): Tokens of a prompt and of each of its answers; their means if `ragged`.
        completions (`int`): Answers of a prompt, K; even.
        cpu_groups, gpu_groups (`int`): Prompts of a micro-batch.
        ragged (`bool`): Whether lengths are drawn from 0.25 to 1.75 times these, each by itself.
    """

    name: str
    prompt: int
    answer: int
    completions: int
    cpu_groups: int
    gpu_groups: int
    ragged: bool = False


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("hh-like", 160, 80, 2, cpu_groups=4, gpu_groups=16),
        Shape("hh-like-ragged", 160, 80, 2, cpu_groups=4, gpu_groups=16, ragged=True),
        Shape("tldr-like", 400, 40, 2, cpu_groups=4, gpu_groups=16),
        Shape("pairs", 300, 150, 2, cpu_groups=2, gpu_groups=16),
        Shape("ultrafeedback-like", 300, 300, 4, cpu_groups=1, gpu_groups=8),
        Shape("four-short", 300, 100, 4, cpu_groups=2, gpu_groups=8),
        Shape("eight", 300, 150, 8, cpu_groups=1, gpu_groups=4),
        Shape("long-two", 1024, 128, 2, cpu_groups=1, gpu_groups=8),
        Shape("long-four", 1024, 128, 4, cpu_groups=1, gpu_groups=4),
        Shape("long-eight", 1024, 128, 8, cpu_groups=1, gpu_groups=2),
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
    return replace(shape, prompt=shape.prompt // 16, answer=max(shape.answer // 16, 3), cpu_groups=2)


def draw_batches(shape: Shape, num_groups: int, vocab_size: int, num_batches: int) -> list[list[Group]]:
    """Micro-batches of random tokens, the same on every call and for every contender."""
    rng = random.Random(f"{shape.name} {vocab_size}")

    def draw(mean: int) -> list[int]:
        length = max(round(mean * rng.uniform(0.25, 1.75)), 1) if shape.ragged else mean
        return rng.choices(range(_FIRST_ID, vocab_size), k=length)

    def draw_group() -> Group:
        return Group(draw(shape.prompt), [draw(shape.answer) for _ in range(shape.completions)])

    return [[draw_group() for _ in range(num_groups)] for _ in range(num_batches)]


def num_tokens(batch: list[Group]) -> int:
    """Distinct tokens of a batch: every prompt once, every answer once."""
    return sum(len(group.prompt) + sum(map(len, group.answers)) for group in batch)
