"""Identity of a reward: everything that its values depend on, so that a changed reward is noticed."""

from typing import Any

from trl_dpo_ext.evaluation.rewards.classifier_reward import ClassifierReward
from trl_dpo_ext.evaluation.rewards.reward import Reward
from trl_dpo_ext.evaluation.rewards.reward_function import hash_function
from trl_dpo_ext.reward_model.files.run_identity import hash_model, hash_tokenizer
from trl_dpo_ext.reward_model.implicit_reward_model import ImplicitRewardModel


__all__ = ["identity_of_reward"]


def identity_of_reward(reward: Reward) -> dict[str, Any]:
    """
    Returns what a reward depends on, by name: hashes and options.

    A function is identified by its name and the file that it is defined in, not by what that file imports.
    """
    if isinstance(reward, ClassifierReward):
        return {
            "model": hash_model(reward.model),
            "tokenizer": hash_tokenizer(reward.processing_class),
            "label": reward.label,
        }
    if isinstance(reward, ImplicitRewardModel):
        reference = reward.reference
        return {
            "policy": hash_model(reward.policy),
            "reference": None if reference is None else hash_model(reference),
            "tokenizer": hash_tokenizer(reward.processing_class),
            "beta": reward.beta,
            "mixed_precision": reward.mixed_precision,
            **vars(reward.row_options),
        }
    return {"function": hash_function(reward)}
