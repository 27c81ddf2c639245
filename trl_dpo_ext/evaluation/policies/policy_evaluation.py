"""Results of a policy on prompts, and their summary."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trl_dpo_ext.evaluation.best_of_n_estimates import best_of_n, best_of_n_kl, best_of_n_kl_bound
from trl_dpo_ext.evaluation.policies.estimates import Estimate, mean_over_prompts, wins_by_prompt
from trl_dpo_ext.evaluation.policies.measured_samples import MeasuredSample


__all__ = ["PolicyEvaluation"]


@dataclass
class PolicyEvaluation:
    """
    Results of a policy on P prompts with m samples each. Arrays have the shape `(P, m)`.

    Args:
        rewards (`dict[str, numpy.ndarray]`):
            Rewards, by name.
        kl (`numpy.ndarray`):
            Sum over the steps of a sample of the exact KL of the policy from the reference, in nats.
        logp (`numpy.ndarray`):
            Log-probability of each sample in the distribution that was sampled, in nats.
        ref_logp (`numpy.ndarray`):
            Log-probability of each sample under the reference, in nats.
        finished (`numpy.ndarray`):
            1 if the sample ended before `max_new_tokens` were over, else 0.
        length (`numpy.ndarray`):
            Number of tokens, with the one that ended the sample.
        distinct_words (`numpy.ndarray`):
            Number of distinct words divided by the number of words: 1 without repetition, NaN without a word.
        completions (`list[list[str]]`):
            Texts of the samples, or empty if they are in a file.
        reference (`PolicyEvaluation`, *optional*):
            Results of the reference on the same prompts.
    """

    rewards: dict[str, np.ndarray]
    kl: np.ndarray
    logp: np.ndarray
    ref_logp: np.ndarray
    finished: np.ndarray
    length: np.ndarray
    distinct_words: np.ndarray
    completions: list[list[str]] = field(default_factory=list)
    reference: "PolicyEvaluation | None" = None

    @classmethod
    def of(
        cls, measured: Iterable[Sequence[MeasuredSample]], reference: "PolicyEvaluation | None" = None, *, texts: bool
    ) -> "PolicyEvaluation":
        """
        Collects measured samples.

        Args:
            measured (`Iterable[Sequence[MeasuredSample]]`):
                Samples of each prompt, the same number for all.
            reference (`PolicyEvaluation`, *optional*):
                Results of the reference.
            texts (`bool`):
                Whether to keep the texts.
        """
        rows: list[np.ndarray] = []
        completions: list[list[str]] = []
        names: list[str] = []
        for of_prompt in measured:
            rows.append(np.array([_numbers(sample) for sample in of_prompt]))
            names = list(of_prompt[0].rewards)
            if texts:
                completions.append([sample.completion for sample in of_prompt])
        values = np.moveaxis(np.array(rows), 2, 0)  # (6 + R, P, m)
        of_samples = dict(
            zip(("kl", "logp", "ref_logp", "finished", "length", "distinct_words"), values, strict=False)
        )
        rewards = dict(zip(names, values[len(of_samples) :], strict=True))
        return cls(rewards, **of_samples, completions=completions, reference=reference)

    @property
    def reward(self) -> np.ndarray:
        """
        The first reward.

        Raises:
            ValueError: If there is no reward.
        """
        if not self.rewards:
            raise ValueError("The policy was evaluated without a reward.")
        return next(iter(self.rewards.values()))

    @property
    def kl_k1(self) -> np.ndarray:
        """Log-ratio of each sample, in nats. Its mean estimates the same KL as `kl`, with more variance."""
        return self.logp - self.ref_logp

    def summary(self, best_of: Sequence[int] = ()) -> dict[str, Any]:
        """
        Means over prompts with standard errors clustered by prompt, under names that end in `_se`.

        Args:
            best_of (`Sequence[int]`, *optional*):
                Numbers of samples N for best of N. Those above the number of samples are left out.

        Returns:
            `dict`: `reward`, `win_over_reference` (share of pairs of samples of policy and reference in which the
            policy's has the larger reward), `kl`, `kl_k1`, `finished_share`, `mean_length` and `distinct_words`;
            `rewards`, the first two for each reward if there are several; `best_of_n`, a list with `n`,
            `selected_by`, `reward`, `kl` (from the policy itself) and its upper bound `kl_bound`. Values without
            meaning, such as a standard error of one prompt, are NaN.
        """
        of_rewards = {name: self._of_reward(name) for name in self.rewards}
        result: dict[str, Any] = dict(next(iter(of_rewards.values()), {}))
        for name, values in {
            "kl": self.kl,
            "kl_k1": self.kl_k1,
            "finished_share": self.finished,
            "mean_length": self.length,
            "distinct_words": self.distinct_words,
        }.items():
            result |= _with_se(name, mean_over_prompts(values))
        if len(of_rewards) > 1:
            result["rewards"] = of_rewards
        if self.rewards and best_of:
            numbers = [n for n in best_of if n <= self.kl.shape[1]]
            result["best_of_n"] = [self._best_of_n(n, name) for name in self.rewards for n in numbers]
        return result

    def _of_reward(self, name: str) -> dict[str, float]:
        found = _with_se("reward", mean_over_prompts(self.rewards[name]))
        if self.reference is not None:
            wins = wins_by_prompt(self.rewards[name], self.reference.rewards[name])
            found |= _with_se("win_over_reference", mean_over_prompts(wins))
        return found

    def _best_of_n(self, n: int, name: str) -> dict[str, Any]:
        scores = self.rewards[name]
        kls = best_of_n_kl(np.minimum(self.logp, 0), n)  # a sum of logarithms may exceed 0 by rounding
        return {
            "n": n,
            "selected_by": name,
            **_with_se("reward", mean_over_prompts(best_of_n(scores, n, values=self.reward))),
            **_with_se("kl", mean_over_prompts(best_of_n(scores, n, values=kls))),
            "kl_bound": best_of_n_kl_bound(n),
        }


def _numbers(sample: MeasuredSample) -> tuple[float, ...]:
    words = re.findall(r"\w+", sample.completion.lower())
    return (
        sample.kl,
        sample.logp,
        sample.ref_logp,
        float(sample.finished),
        float(len(sample.token_ids)),
        len(set(words)) / len(words) if words else math.nan,
        *sample.rewards.values(),
    )


def _with_se(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.mean, f"{name}_se": estimate.se}
