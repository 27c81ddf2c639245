"""Floating-point operations of a step: those that its data need, and those that a way to train executes."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from torch import nn
from transformers import PreTrainedModel

from benchmarks.shapes import Group


__all__ = ["Costs", "Work", "distinct_work", "padded_work", "row_work"]

# Of a forward. A matrix product has a backward for its input and one for its weight; with LoRA the weight has none
_LINEAR_BACKWARD, _LINEAR_BACKWARD_LORA = 2, 1
# FlashAttention makes two products forward and five backward, one of which computes the scores again
_ATTENTION_BACKWARD_NEEDED, _ATTENTION_BACKWARD_EXECUTED = 2, 2.5
# TRL's fused LM head computes its logits again in the backward
_HEAD_AGAIN = 1


@dataclass(frozen=True)
class Work:
    """
    What one forward over a batch computes.

    Args:
        tokens (`int`): Tokens that go through the layers, padding included.
        pairs (`int`): Pairs of a query and a key whose score is computed.
        scored (`int`): Tokens that go through the LM head.
        padding (`int`): Those of the tokens that are padding.
    """

    tokens: int = 0
    pairs: int = 0
    scored: int = 0
    padding: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


def distinct_work(batch: Iterable[Group]) -> Work:
    """Each prompt once, and each answer once behind it. Its last token predicts nothing and is not computed."""
    total = Work()
    for group in batch:
        prompt = len(group.prompt)
        answers = [len(answer) for answer in group.answers]
        total += Work(
            tokens=prompt + sum(answers) - len(answers),
            pairs=_causal(prompt) + sum(_causal(n - 1) + (n - 1) * prompt for n in answers),
            scored=sum(answers),
        )
    return total


def row_work(batch: Iterable[Group]) -> Work:
    """A row for each answer, without padding: its prompt, and the answer."""
    total = Work()
    for group in batch:
        for answer in group.answers:
            length = len(group.prompt) + len(answer)
            total += Work(length, _causal(length), len(answer))
    return total


def padded_work(shapes: Sequence[tuple[int, int]], real: int, scored: int | None = None) -> Work:
    """
    Rows under a mask: every score of a row is computed.

    Args:
        shapes (`Sequence[tuple[int, int]]`): Shape `(rows, length)` of each forward's token ids.
        real (`int`): Tokens that are not padding.
        scored (`int`, *optional*): Tokens that go through the LM head. By default all that have a successor.
    """
    tokens = sum(rows * length for rows, length in shapes)
    every = sum(rows * (length - 1) for rows, length in shapes)
    return Work(
        tokens=tokens,
        pairs=sum(rows * length**2 for rows, length in shapes),
        scored=every if scored is None else scored,
        padding=tokens - real,
    )


def _causal(length: int) -> int:
    return length * (length + 1) // 2


@dataclass(frozen=True)
class Costs:
    """
    Weights of a decoder, of which a forward multiplies each by each of its tokens.

    Args:
        linear (`int`): Weights of the linear layers.
        attention (`int`): Layers x heads x head size. A pair of a query and a key takes as many products for its
            score, and as many again for its value.
        head (`int`): Weights of the LM head.
    """

    linear: int
    attention: int
    head: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Costs":
        """Costs of a dense decoder. What its adapter adds, normalizations and embeddings are not counted."""
        config = model.config.get_text_config()
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        head = model.get_output_embeddings().weight.numel()
        linear = sum(
            module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and "lora_" not in name
        )
        return cls(linear - head, config.num_hidden_layers * config.num_attention_heads * head_size, head)

    def needed(self, work: Work, lora: bool = False) -> float:
        """Operations of a forward and backward of the policy, nothing computed twice and without a reference."""
        linear = 1 + (_LINEAR_BACKWARD_LORA if lora else _LINEAR_BACKWARD)
        return self._sum(work, linear, 1 + _ATTENTION_BACKWARD_NEEDED, linear)

    def executed(self, work: Work, live: bool, lora: bool = False) -> float:
        """
        Operations of a step.

        Args:
            work ([`Work`]): What its forward computes.
            live (`bool`): Whether the reference is run as well.
            lora (`bool`, *optional*, defaults to `False`): Whether the weights are frozen.
        """
        linear = 1 + (_LINEAR_BACKWARD_LORA if lora else _LINEAR_BACKWARD) + live
        return self._sum(work, linear, 1 + _ATTENTION_BACKWARD_EXECUTED + live, linear + _HEAD_AGAIN)

    def _sum(self, work: Work, linear: float, attention: float, head: float) -> float:
        # Two operations, a product and a sum, for each weight
        return (
            2 * self.linear * work.tokens * linear
            + 4 * self.attention * work.pairs * attention
            + 2 * self.head * work.scored * head
        )
