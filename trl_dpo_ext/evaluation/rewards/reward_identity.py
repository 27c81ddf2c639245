"""Identity of a reward: everything that its values depend on, so that a changed reward is noticed."""

import json
from typing import Any

import xxhash

from trl_dpo_ext.evaluation.rewards.classifier_reward import ClassifierReward
from trl_dpo_ext.evaluation.rewards.reward import Reward
from trl_dpo_ext.evaluation.rewards.reward_function import hash_function
from trl_dpo_ext.reward_model.files.run_identity import hash_model, hash_tokenizer
from trl_dpo_ext.reward_model.implicit_reward_model import ImplicitRewardModel


__all__ = ["identity_of_reward"]


def identity_of_reward(reward: Reward) -> str:
    """
    Returns a hash of what a reward depends on.

    A function is identified by its name and the file that it is defined in, not by what that file imports.
    """
    return xxhash.xxh3_128(json.dumps(_parts(reward)).encode()).hexdigest()


def _parts(reward: Reward) -> list[Any]:
    if isinstance(reward, ClassifierReward):
        return [hash_model(reward.model), hash_tokenizer(reward.processing_class), reward.label]
    if isinstance(reward, ImplicitRewardModel):
        models = [reward.policy] if reward.reference is None else [reward.policy, reward.reference]
        options = [reward.beta, reward.reference_free, reward.mixed_precision, vars(reward.row_options)]
        return [*map(hash_model, models), hash_tokenizer(reward.processing_class), *options]
    return [hash_function(reward)]
