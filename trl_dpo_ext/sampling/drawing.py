r"""
Drawing of a token from logits and random numbers, which belong to one step of one sample.

$$ y_t = \arg\max_v p(v | x, y_{<t}) / E_{tv}, \qquad E_{tv} \sim \mathrm{Exp}(1) $$

is a draw of p (an exponential race). A change of the logits by \\( \delta \\), such as the rounding of another
processor, changes the draw with a probability of at most about \\( 2 \delta \\), however large the vocabulary is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trl_dpo_ext.sampling.options import SamplingOptions


__all__ = ["Draws", "Step", "draw", "sampled_logits"]


class Step(NamedTuple):
    """A token to draw: the index of its prompt, of the sample of this prompt, and of the token."""

    prompt_id: int
    sample: int
    token: int


class Draws(NamedTuple):
    """Tokens `(N,)`, and the log-probability of each in the distribution that it was drawn from, `(N,)`, float64."""

    tokens: Tensor
    logps: Tensor


def draw(logits: Tensor, steps: Sequence[Step], options: SamplingOptions) -> Draws:
    """
    Draws a token for each step.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`):
            Logits of the model.
        steps (`Sequence[Step]`):
            What each row is the next token of.
        options ([`SamplingOptions`]):
            Temperature, top-k, top-p and seed.

    Returns:
        [`Draws`]: NaN log-probabilities where logits are not finite.
    """
    scaled = sampled_logits(logits, options)  # (N, V)
    scaled = scaled - scaled.amax(dim=1, keepdim=True)
    weights = scaled.exp()
    noise = torch.from_numpy(_exponentials(options.seed, steps, logits.size(1))).to(scaled.device)
    tokens = (weights / noise).argmax(dim=1)
    logps = scaled.gather(1, tokens[:, None])[:, 0] - weights.sum(dim=1).log()
    return Draws(tokens, logps)


def sampled_logits(logits: Tensor, options: SamplingOptions) -> Tensor:
    """
    Returns the logits of the distribution that is sampled, after temperature, top-k and top-p.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`):
            Logits of the model.
        options ([`SamplingOptions`]):
            Temperature, top-k and top-p.

    Returns:
        `torch.Tensor` of shape `(N, V)`: float64, -inf for tokens that are left out.
    """
    if logits.device.type == "mps":  # has no float64
        logits = logits.cpu()
    if options.temperature == 0:  # the limit
        most_likely = logits == logits.amax(dim=1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.double).masked_fill(~most_likely, -torch.inf)
    return _kept(logits.double() / options.temperature, options)


def _exponentials(seed: int, steps: Sequence[Step], size: int) -> np.ndarray:
    """Random numbers of each step, `(N, size)`: a stream of its own, by seed, prompt, sample and token."""
    bits = np.random.Philox(key=[seed, 0])
    generator = np.random.Generator(bits)
    start: Any = bits.state  # set again for each step, which is faster than a new generator
    noise = np.empty((len(steps), size))
    for row, step in zip(noise, steps, strict=True):
        start["state"]["key"][1] = step.prompt_id
        # Philox counts in the first word, so that no two streams meet
        start["state"]["counter"][:] = 0, step.token, step.sample, 0
        bits.state = start
        generator.standard_exponential(out=row)
    return noise


def _kept(scaled: Tensor, options: SamplingOptions) -> Tensor:
    """Removes the tokens that top-k, and then top-p, leave out. Tokens as likely as the last kept one are kept."""
    if 0 < options.top_k < scaled.size(1):
        least = scaled.topk(options.top_k, dim=1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if options.top_p < 1:
        ordered = scaled.sort(dim=1, descending=True).values
        before = ordered.softmax(dim=1).cumsum(dim=1).roll(1, dims=1)  # probability of the more likely tokens
        before[:, 0] = 0
        least = ordered.masked_fill(before >= options.top_p, torch.inf).amin(dim=1, keepdim=True)
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    return scaled
