"""Measurement of samples: rewards, and KL from the reference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trl_dpo_ext.evaluation.policies.sequence_kl import CompletionKL, SequenceKL, TokenizedCompletion
from trl_dpo_ext.evaluation.rewards.reward import Reward, rewards_of
from trl_dpo_ext.evaluation.samples.prompts import TokenizedPrompt
from trl_dpo_ext.evaluation.samples.sampler import Sample


__all__ = ["MeasuredSample", "measure"]

_LOGP_TOLERANCE = 0.2  # mean difference, in nats a token: several times the difference between two precisions


@dataclass
class MeasuredSample(Sample):
    """
    A sample with what was measured, and a row of a file of records.

    Args:
        ref_logp (`float`):
            Log-probability of its tokens under the reference, in nats.
        kl (`float`):
            Sum over its steps of the exact KL of the sampled distribution from the reference, in nats.
        rewards (`dict[str, float]`):
            Rewards, by name.
    """

    ref_logp: float
    kl: float
    rewards: dict[str, float]


def measure(
    sequence_kl: SequenceKL,
    rewards: Mapping[str, Reward],
    prompts: Sequence[TokenizedPrompt],
    samples: Sequence[Sequence[Sample]],
    *,
    check_logps: bool = False,
) -> list[list[MeasuredSample]]:
    """
    Measures samples.

    Args:
        sequence_kl ([`~trl_dpo_ext.evaluation.policies.sequence_kl.SequenceKL`]):
            KL of the policy that was sampled.
        rewards (`Mapping[str, Reward]`):
            Rewards, by name.
        prompts (`Sequence[TokenizedPrompt]`):
            Prompts.
        samples (`Sequence[Sequence[Sample]]`):
            Samples of each prompt.
        check_logps (`bool`, *optional*, defaults to `False`):
            Whether to compare the log-probabilities of the samples with those of the policy.

    Returns:
        `list[list[MeasuredSample]]`

    Raises:
        ValueError: If a reward is not finite, models do not fit each other, or samples are of another policy.
    """
    flat = [(prompt, sample) for prompt, own in zip(prompts, samples, strict=True) for sample in own]
    kls = sequence_kl.of_completions([TokenizedCompletion(p.token_ids, s.token_ids) for p, s in flat])
    if check_logps:
        _check_logps(kls, [sample for _, sample in flat])
    where = [f"sample {sample.sample} of prompt {sample.prompt_id}" for _, sample in flat]
    found = {
        name: rewards_of(reward, [s.prompt for _, s in flat], [s.completion for _, s in flat], where)
        for name, reward in rewards.items()
    }
    measured = iter(
        MeasuredSample(
            **vars(sample),
            ref_logp=kls[i].ref_logp,
            kl=kls[i].kl,
            rewards={name: values[i] for name, values in found.items()},
        )
        for i, (_, sample) in enumerate(flat)
    )
    return [[next(measured) for _ in own] for own in samples]


def _check_logps(kls: Sequence[CompletionKL], samples: Sequence[Sample]) -> None:
    # A token at the border of top-k or top-p may be left out after other rounding
    pairs = [(kl.logp, sample) for kl, sample in zip(kls, samples, strict=True) if kl.logp > -math.inf]
    num_tokens = sum(len(sample.token_ids) for _, sample in pairs)
    if sum(abs(logp - sample.logp) for logp, sample in pairs) <= _LOGP_TOLERANCE * num_tokens and pairs:
        return
    logp, sample = max(pairs, key=lambda pair: abs(pair[0] - pair[1].logp), default=(-math.inf, samples[0]))
    raise ValueError(
        f"Sample {sample.sample} of prompt {sample.prompt_id} has the log-probability {sample.logp:.2f} in the file, "
        f"and {logp:.2f} under the policy with this temperature, top-k and top-p. Pass the policy that was sampled, "
        "and the options that it was sampled with."
    )
