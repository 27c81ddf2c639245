"""`PolicyEvaluator`: evaluation of policies in memory, before, during and after training."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import is_peft_model

from trl_dpo_ext.evaluation.policies.measured_samples import measure
from trl_dpo_ext.evaluation.policies.policy_evaluation import PolicyEvaluation
from trl_dpo_ext.evaluation.policies.sequence_kl import SequenceKL
from trl_dpo_ext.evaluation.rewards.reward import Reward, name_of
from trl_dpo_ext.evaluation.samples.sampler import Sampler


__all__ = ["PolicyEvaluator"]


class PolicyEvaluator:
    r"""
    Evaluates policies on prompts: reward, KL from the reference, best of N, and win rate over the reference.

    Every policy is sampled with the same random numbers, so two policies differ by less noise. The sequence KL is
    that of every step, exactly, summed over the steps of samples of the policy (see
    [`~trl_dpo_ext.evaluation.policies.sequence_kl.SequenceKL`]). Reference and samples of the reference are shared by
    all policies.

    Args:
        reference ([`~transformers.PreTrainedModel`], *optional*):
            Reference. `None` with a PEFT policy means the reference inside it.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        rewards (`Reward` or `Mapping[str, Reward]`, *optional*):
            A function `f(prompts, completions)`, a [`~trl_dpo_ext.evaluation.ClassifierReward`], an
            [`~trl_dpo_ext.ImplicitRewardModel`], or several by name. The first is the reward that results name.
        mixed_precision (`str`, *optional*, defaults to `"no"`):
            Autocast: `"no"`, `"bf16"` or `"fp16"`.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar for more than 512 samples.
        options:
            Options of sampling: `num_samples`, `temperature`, `top_k`, `top_p`, `max_new_tokens` and `seed`.

    Example:

    ```python
    from trl_dpo_ext.evaluation import PolicyEvaluator

    evaluator = PolicyEvaluator(reference, tokenizer, lambda prompts, completions: [len(c) for c in completions])
    evaluation = evaluator.evaluate(policy, ["The film was", "The cast was"])
    evaluation.summary()  # {'reward': 58.5, 'reward_se': 3.5, ..., 'kl': 1.21, 'kl_se': 0.12, ...}
    ```
    """

    def __init__(
        self,
        reference: Any,
        processing_class: Any,
        rewards: Reward | Mapping[str, Reward] | None = None,
        *,
        mixed_precision: str = "no",
        progress: bool = True,
        **options: Any,
    ):
        self.reference = reference
        self.processing_class = processing_class
        self.rewards = _by_name(rewards)
        self._options = {"mixed_precision": mixed_precision, "progress": progress, **options}
        self._of_reference: dict[tuple[Any, str], PolicyEvaluation] = {}

    def evaluate(self, policy: Any, prompts: Sequence[Any]) -> PolicyEvaluation:
        """
        Evaluates a policy.

        Args:
            policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                Policy. Its mode is restored afterwards.
            prompts (`Sequence`):
                Texts, or lists of messages.

        Returns:
            [`~trl_dpo_ext.evaluation.policies.policy_evaluation.PolicyEvaluation`]

        Raises:
            ValueError: If there are no prompts, a prompt is invalid or too long, a reward is not finite, or policy and
                reference do not fit each other.
        """
        prompts = list(prompts)
        if not prompts:
            raise ValueError("There are no prompts to evaluate on.")
        reference = self._reference_sampler(policy)
        key = (policy if self.reference is None else None, json.dumps(prompts))  # whose reference, on which prompts
        if key not in self._of_reference:
            self._of_reference[key] = self._evaluation(reference, reference, prompts, None)
        if policy is self.reference:
            return self._of_reference[key]
        sampler = Sampler(policy, self.processing_class, **self._options)
        return self._evaluation(sampler, reference, prompts, self._of_reference[key])

    def _reference_sampler(self, policy: Any) -> Sampler:
        if self.reference is not None:
            return Sampler(self.reference, self.processing_class, **self._options)
        if not is_peft_model(policy):
            raise ValueError("`reference=None` means the reference inside a PEFT policy. Pass the reference.")
        return Sampler(policy, self.processing_class, reference_adapter=True, **self._options)

    def _evaluation(
        self, sampler: Sampler, reference: Sampler, prompts: Sequence[Any], of_reference: PolicyEvaluation | None
    ) -> PolicyEvaluation:
        tokenized = sampler.tokenize_prompts(prompts)
        samples = sampler.sample_tokenized(tokenized)
        sequence_kl = SequenceKL(sampler.forward, reference.forward, sampler.options)
        measured = measure(sequence_kl, self.rewards, tokenized, samples)
        return PolicyEvaluation.of(measured, of_reference, texts=True)


def _by_name(rewards: Reward | Mapping[str, Reward] | None) -> dict[str, Reward]:
    if rewards is None:
        return {}
    return dict(rewards) if isinstance(rewards, Mapping) else {name_of(rewards): rewards}
