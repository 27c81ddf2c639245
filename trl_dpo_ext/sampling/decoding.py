r"""
Decoding of a batch: one token of every sample at a time.

Logits depend on the batch in their last bits, because kernels add up in an order that depends on its shape, and so may
a log-probability, or a token where two are nearly as likely. Here everything that a batch computes follows from the
samples that it starts with: which rows there are at each step follows from the tokens before it. The same start gives
the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from trl_dpo_ext.sampling.drawing import Step, draw
from trl_dpo_ext.sampling.options import SamplingOptions
from trl_dpo_ext.sampling.policy_forward import PolicyForward


__all__ = ["Continuation", "decode", "eos_ids_of"]

# Share of the rows of a batch that must have ended before they are removed, which copies the cache
_REMOVED_AT_ONCE = 1 / 8


@dataclass
class Continuation:
    """
    A sample while it is decoded.

    Args:
        prompt_id (`int`):
            Index of the prompt.
        prompt_ids (`list[int]`):
            Its tokens.
        sample (`int`):
            Index of the sample among those of the prompt.
        token_ids (`list[int]`):
            Tokens so far.
        logp (`float`):
            Their log-probability, in nats.
        has_ended (`bool`):
            Whether the last token ends it.
    """

    prompt_id: int
    prompt_ids: list[int]
    sample: int
    token_ids: list[int] = field(default_factory=list)
    logp: float = 0.0
    has_ended: bool = False


def eos_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """
    Tokens that end a sample: the tokenizer's EOS, and those that the model is generated with.

    Raises:
        ValueError: If there are none.
    """
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])} - {None}
    if not found:
        raise ValueError(
            "The tokenizer has no EOS token, and the model's generation config names none, so no sample could end. "
            "Set `tokenizer.eos_token`."
        )
    return frozenset(found)


def decode(
    forward: PolicyForward, samples: Sequence[Continuation], options: SamplingOptions, eos_ids: frozenset[int]
) -> None:
    """
    Decodes the samples of a batch to their ends.

    Prompts are computed once for all their samples, and rows leave the batch when they have ended. Models without a
    cache of keys and values (recurrent models, prompt-learning adapters) compute every step from the start.

    Args:
        forward ([`~trl_dpo_ext.sampling.policy_forward.PolicyForward`]):
            Policy.
        samples (`Sequence[Continuation]`):
            Samples without a token.
        options ([`~trl_dpo_ext.sampling.options.SamplingOptions`]):
            Options.
        eos_ids (`frozenset[int]`):
            Tokens that end a sample.

    Raises:
        ValueError: If logits are not finite.
    """
    pad_id = min(eos_ids)  # the value of padding has no effect
    rows = list(samples)
    state = _Cached.start(forward, rows, pad_id) if forward.can_cache else None
    while True:
        logits = _last_logits(forward, rows, pad_id) if state is None else state.logits
        open_rows = [i for i, row in enumerate(rows) if not _is_complete(row, options)]
        _append(rows, open_rows, logits, options, eos_ids)
        left = [i for i in open_rows if not _is_complete(rows[i], options)]
        if not left:
            return
        if state is None:
            rows = [rows[i] for i in left]
            continue
        if len(rows) - len(left) >= _REMOVED_AT_ONCE * len(rows):
            rows = [rows[i] for i in left]
            state.keep(left)
        state.step(forward, [row.token_ids[-1] for row in rows])


class _Cached:
    """Cache, mask and positions of rows that are padded on the left, and their next logits `(N, V)`."""

    def __init__(self, cache: Any, mask: Tensor, positions: Tensor, logits: Tensor):
        self.cache = cache
        self.mask = mask
        self.positions = positions
        self.logits = logits

    @classmethod
    def start(cls, forward: PolicyForward, rows: Sequence[Continuation], pad_id: int) -> "_Cached | None":
        """Computes the prompts. `None` if the model has another kind of cache."""
        prompts = {row.prompt_id: row.prompt_ids for row in rows}
        width = max(map(len, prompts.values()))
        ids = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts.values()])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts.values()])
        mask = mask.to(forward.device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits, cache = forward(ids, 1, attention_mask=mask, position_ids=positions, use_cache=True)
        kinds = (DynamicLayer, DynamicSlidingWindowLayer)
        if not (isinstance(cache, DynamicCache) and all(type(layer) in kinds for layer in cache.layers)):
            return None
        state = cls(cache, mask, positions[:, -1:], logits[:, -1])
        place = {prompt_id: i for i, prompt_id in enumerate(prompts)}
        state.keep([place[row.prompt_id] for row in rows])
        return state

    def keep(self, rows: list[int]) -> None:
        """Keeps some rows, or repeats them."""
        index = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask, self.positions, self.logits = self.mask[index], self.positions[index], self.logits[index]

    def step(self, forward: PolicyForward, tokens: list[int]) -> None:
        """Computes one more token of each row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions + 1
        logits, self.cache = forward(
            torch.tensor(tokens)[:, None],
            1,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = logits[:, -1]


def _last_logits(forward: PolicyForward, rows: Sequence[Continuation], pad_id: int) -> Tensor:
    # Padded on the right, so that recurrent models do not see padding before a token
    texts = [[*row.prompt_ids, *row.token_ids] for row in rows]
    width, shortest = max(map(len, texts)), min(map(len, texts))
    ids = torch.tensor([text + [pad_id] * (width - len(text)) for text in texts])
    logits, _ = forward(ids, width - shortest + 1, use_cache=False)
    return logits[torch.arange(len(texts)), torch.tensor([len(text) - shortest for text in texts])]


def _append(
    rows: Sequence[Continuation],
    open_rows: list[int],
    logits: Tensor,
    options: SamplingOptions,
    eos_ids: frozenset[int],
) -> None:
    steps = [Step(rows[i].prompt_id, rows[i].sample, len(rows[i].token_ids)) for i in open_rows]
    drawn = draw(logits if len(steps) == len(rows) else logits[open_rows], steps, options)
    for i, token, logp in zip(open_rows, drawn.tokens.tolist(), drawn.logps.tolist(), strict=True):
        row = rows[i]
        if logp != logp:
            raise ValueError(
                f"The logits of prompt {row.prompt_id} are not finite. Look for NaN in the weights, or use a dtype "
                "with a larger range."
            )
        row.token_ids.append(token)
        row.logp += logp
        row.has_ended = token in eos_ids


def _is_complete(row: Continuation, options: SamplingOptions) -> bool:
    return row.has_ended or len(row.token_ids) >= options.max_new_tokens
