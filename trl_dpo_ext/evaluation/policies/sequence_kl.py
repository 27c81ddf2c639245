r"""
KL of a policy from its reference along sampled completions.

$$ \sum_t \sum_v \pi(v | x, y_{<t}) \log \frac{\pi(v | x, y_{<t})}{\pi_{ref}(v | x, y_{<t})} $$

The mean over completions that were sampled from \\( \pi \\) estimates the KL of the two distributions over whole
completions, the one on the horizontal axis of Fig. 2 of
[Rafailov et al. (2023)](https://huggingface.co/papers/2305.18290). The KL of every step is exact, so this estimate has
no more variance than the log-ratio of the sampled tokens
([Amini et al., 2025](https://huggingface.co/papers/2504.10637)).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trl_dpo_ext.sampling.drawing import sampled_logits
from trl_dpo_ext.sampling.options import SamplingOptions
from trl_dpo_ext.sampling.policy_forward import PolicyForward


__all__ = ["CompletionKL", "SequenceKL", "TokenizedCompletion"]

_MAX_TOKENS = 16_384
# Logits of a forward pass, and those that are computed with at once in float64
_MAX_LOGITS = {"cpu": 2**26}
_MAX_LOGITS_ELSEWHERE = 2**29
_MAX_LOGITS_AT_ONCE = 2**22


class TokenizedCompletion(NamedTuple):
    """Token ids of a prompt and a completion, as they were sampled."""

    prompt_ids: list[int]
    token_ids: list[int]


class CompletionKL(NamedTuple):
    """
    Sums over the tokens of a completion, in nats.

    Args:
        kl (`float`):
            Exact KL of each step, from the reference.
        logp (`float`):
            Log-probability of the tokens in the distribution that was sampled.
        ref_logp (`float`):
            Log-probability of the tokens under the reference.
    """

    kl: float
    logp: float
    ref_logp: float


class SequenceKL:
    """
    KL of the distribution that is sampled from the reference.

    With temperature 1 and all tokens, the policy itself is sampled. Otherwise this is the KL of the policy after
    temperature, top-k and top-p from the reference as it is, exactly.

    Args:
        policy ([`~trl_dpo_ext.sampling.policy_forward.PolicyForward`]):
            Policy.
        reference ([`~trl_dpo_ext.sampling.policy_forward.PolicyForward`]):
            Reference. May be the same object.
        options ([`~trl_dpo_ext.sampling.options.SamplingOptions`]):
            Temperature, top-k and top-p that the completions were sampled with.
    """

    def __init__(self, policy: PolicyForward, reference: PolicyForward, options: SamplingOptions):
        self.policy = policy
        self.reference = reference
        self.options = options

    def of_completions(self, completions: Sequence[TokenizedCompletion]) -> list[CompletionKL]:
        """
        Computes the sums of completions.

        Args:
            completions (`Sequence[TokenizedCompletion]`):
                Completions, sampled from the policy for an estimate of the KL.

        Returns:
            `list[CompletionKL]`

        Raises:
            ValueError: If the vocabularies differ, or a result is not finite.
        """
        found: dict[int, CompletionKL] = {}
        left = sorted(range(len(completions)), key=lambda i: -_length(completions[i]))
        while left:
            size = self._rows_at_once(_length(completions[left[0]]))
            batch, left = left[:size], left[size:]
            found |= zip(batch, self._of_batch([completions[i] for i in batch]), strict=True)
        return [found[i] for i in range(len(completions))]

    def _rows_at_once(self, width: int) -> int:
        vocabulary = self.policy.model.config.get_text_config().vocab_size
        logits = _MAX_LOGITS.get(self.policy.device.type, _MAX_LOGITS_ELSEWHERE)
        return max(1, min(_MAX_TOKENS, logits // vocabulary) // width)

    def _of_batch(self, rows: Sequence[TokenizedCompletion]) -> list[CompletionKL]:
        # Padded on the right, which has no effect on the tokens before it
        width, shortest = max(map(_length, rows)), min(len(row.prompt_ids) for row in rows)
        ids = torch.tensor([[*prompt, *tokens] + [0] * (width - len(prompt) - len(tokens)) for prompt, tokens in rows])
        logits = _logits(self.policy, ids, width - shortest + 1)
        ref_logits = logits
        if self.reference is not self.policy:
            ref_logits = _logits(self.reference, ids, width - shortest + 1).to(logits.device)
        if logits.size(-1) != ref_logits.size(-1):
            raise ValueError(
                f"The policy has logits of {logits.size(-1)} tokens and the reference of {ref_logits.size(-1)}, so "
                "there is no KL between them. Pass the model that training started from as the reference."
            )
        sums = self._sums(logits, ref_logits, rows, shortest)
        for kl, _, ref_logp in sums:
            if not (kl < torch.inf and ref_logp > -torch.inf):
                raise ValueError(
                    f"The KL of a completion is {kl}, and its log-probability under the reference {ref_logp}. Look "
                    "for NaN in the weights, or use a dtype with a larger range."
                )
        return sums

    def _sums(
        self, logits: Tensor, ref_logits: Tensor, rows: Sequence[TokenizedCompletion], first: int
    ) -> list[CompletionKL]:
        """Sums of rows, whose logits `(N, T, V)` begin with those after the token `first - 1`."""
        device = logits.device
        lengths = torch.tensor([len(row.token_ids) for row in rows])
        # Of each token of all completions: its row, and the place of the logits that predict it
        row_of = torch.arange(len(rows)).repeat_interleave(lengths)
        places = torch.cat([torch.arange(len(row.token_ids)) + len(row.prompt_ids) - first for row in rows])
        tokens = torch.tensor([token for row in rows for token in row.token_ids])
        row_of, places, tokens = row_of.to(device), places.to(device), tokens[:, None].to(device)
        sums = torch.zeros(len(rows), 3, dtype=torch.double, device=device)
        for some in torch.arange(len(tokens)).split(max(1, _MAX_LOGITS_AT_ONCE // logits.size(-1))):
            at = row_of[some], places[some]
            logps = sampled_logits(logits[at], self.options).log_softmax(dim=1)  # (C, V), float64
            ref_logps = ref_logits[at].double().log_softmax(dim=1)
            # Tokens that are never sampled add nothing
            kls = torch.where(logps > -torch.inf, logps.exp() * (logps - ref_logps), 0.0).sum(dim=1, keepdim=True)
            chosen = tokens[some]
            steps = torch.cat([kls, logps.gather(1, chosen), ref_logps.gather(1, chosen)], dim=1)
            sums.index_add_(0, row_of[some], steps)
        return [CompletionKL(*row) for row in sums.tolist()]


def _length(row: TokenizedCompletion) -> int:
    return len(row.prompt_ids) + len(row.token_ids)


def _logits(forward: PolicyForward, ids: Tensor, num_last: int) -> Tensor:
    with forward.ready():
        logits, _ = forward(ids, num_last, use_cache=False)
    return logits.cpu() if logits.device.type == "mps" else logits  # which has no float64
