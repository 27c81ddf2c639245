"""Measurement of samples: rewards, and KL from the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trl_dpo_ext.evaluation.policies.sequence_kl import SequenceKL, TokenizedCompletion
from trl_dpo_ext.evaluation.rewards.reward import Reward, rewards_of
from trl_dpo_ext.evaluation.samples.prompts import TokenizedPrompt
from trl_dpo_ext.evaluation.samples.sampler import Sample


__all__ = ["MeasuredSample", "measure"]


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

    Returns:
        `list[list[MeasuredSample]]`

    Raises:
        ValueError: If a reward is not finite, or models do not fit each other.
    """
    flat = [(prompt, sample) for prompt, own in zip(prompts, samples, strict=True) for sample in own]
    kls = sequence_kl.of_completions([TokenizedCompletion(p.token_ids, s.token_ids) for p, s in flat])
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
