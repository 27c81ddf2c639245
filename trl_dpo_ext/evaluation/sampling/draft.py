"""Fast drafts of samples: token by token in large batches, with a cache."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from trl_dpo_ext.evaluation.sampling.drawing import Step, draw
from trl_dpo_ext.evaluation.sampling.options import SamplingOptions
from trl_dpo_ext.evaluation.sampling.policy_forward import PolicyForward
from trl_dpo_ext.evaluation.sampling.sequences import Continuation, padded


__all__ = ["Drafter"]

# Share of the rows of a batch that must have ended before they are removed, which copies the cache
_REMOVED_AT_ONCE = 1 / 8


class Drafter:
    """
    Drafts the next tokens of samples.

    A draft need not be exact: [`~trl_dpo_ext.evaluation.sampling.exact.ExactPass`] replaces each token that differs.
    Prompts are computed once for all their samples, and rows leave a batch when they have ended. A model without a
    cache of keys and values (recurrent models, prompt-learning adapters) gets no draft.

    Args:
        forward ([`~trl_dpo_ext.evaluation.sampling.policy_forward.PolicyForward`]):
            Policy.
        options ([`~trl_dpo_ext.evaluation.sampling.options.SamplingOptions`]):
            Options.
        pad_id (`int`):
            Any token id, for padding.
        max_tokens (`int`):
            Maximum number of tokens of a batch.
    """

    def __init__(self, forward: PolicyForward, options: SamplingOptions, pad_id: int, max_tokens: int):
        self._forward = forward
        self._options = options
        self._pad_id = pad_id
        self._max_tokens = max_tokens

    def extend(self, samples: Sequence[Continuation], end: int) -> None:
        """Appends tokens to samples until they have ended, or have `end` tokens."""
        if self._forward.can_cache:
            for batch in self._batches([sample for sample in samples if not sample.is_drafted(end)], end):
                self._extend(batch, end)

    def _batches(self, samples: Sequence[Continuation], end: int) -> Iterator[list[Continuation]]:
        batch: list[Continuation] = []
        for sample in sorted(samples, key=lambda sample: -len(sample.prompt_ids)):
            longest = len((batch or [sample])[0].prompt_ids) + end
            if batch and (len(batch) + 1) * longest > self._max_tokens:
                yield batch
                batch = []
            batch.append(sample)
        if batch:
            yield batch

    def _extend(self, rows: list[Continuation], end: int) -> None:
        texts = [(*row.prompt_ids, *row.token_ids) for row in rows]
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        width = max(map(len, distinct))
        device = self._forward.device
        mask = padded([[1] * len(text) for text in distinct], width, 0, left=True).to(device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits, cache = self._forward(
            padded(list(distinct), width, self._pad_id, left=True),
            1,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
        )
        if not _has_keys_and_values(cache):
            return
        index = torch.tensor([distinct[text] for text in texts], device=device)
        cache.batch_select_indices(index)
        logits, mask, positions = logits[index, -1], mask[index], positions[index, -1:]
        while True:
            drawn = [i for i, row in enumerate(rows) if not row.is_drafted(end)]
            steps = [Step(rows[i].prompt_id, rows[i].sample, len(rows[i].token_ids)) for i in drawn]
            tokens = draw(logits if len(drawn) == len(rows) else logits[drawn], steps, self._options).tokens
            for i, token in zip(drawn, tokens.tolist(), strict=True):
                rows[i].token_ids.append(token)
            left = [i for i, row in enumerate(rows) if not row.is_drafted(end)]
            if not left:
                return
            if len(rows) - len(left) >= _REMOVED_AT_ONCE * len(rows):
                index = torch.tensor(left, device=device)
                cache.batch_select_indices(index)
                rows, mask, positions = [rows[i] for i in left], mask[index], positions[index]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            positions = positions + 1
            logits, cache = self._forward(
                torch.tensor([[row.token_ids[-1]] for row in rows]),
                1,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            logits = logits[:, -1]


def _has_keys_and_values(cache: Any) -> bool:
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return isinstance(cache, DynamicCache) and all(type(layer) in kinds for layer in cache.layers)
