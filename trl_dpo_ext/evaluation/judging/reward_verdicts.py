"""Verdicts of a reward: the completion with the larger reward is preferred."""

from collections.abc import Sequence

from transformers.utils import logging

from trl_dpo_ext.evaluation.judging.asking import new_verdict
from trl_dpo_ext.evaluation.judging.comparisons import Comparison
from trl_dpo_ext.evaluation.judging.judges import Answer
from trl_dpo_ext.evaluation.judging.verdicts import RaterIdentity, VerdictFile
from trl_dpo_ext.evaluation.rewards.reward import Reward, name_of, rewards_of
from trl_dpo_ext.evaluation.rewards.reward_identity import identity_of_reward


__all__ = ["judge_by_reward"]

_COMPARISONS_AT_ONCE = 64


def judge_by_reward(
    reward: Reward, comparisons: Sequence[Comparison], file: VerdictFile, *, rater: str | None = None
) -> tuple[RaterIdentity, int]:
    """
    Writes the verdicts of a reward that are missing. Equal rewards are a tie. There is no order.

    Args:
        reward ([`~trl_dpo_ext.evaluation.rewards.reward.Reward`]):
            Reward.
        comparisons (`Sequence[Comparison]`):
            Comparisons.
        file ([`VerdictFile`]):
            File, opened.
        rater (`str`, *optional*):
            Name of the reward as a rater. Default: its own.

    Returns:
        `tuple[RaterIdentity, int]`: The reward as a rater, and the number of new verdicts.

    Raises:
        ValueError: If verdicts of the rater under other conditions are in the file, or a reward is not finite.
    """
    name, parameters = name_of(reward), {"reward": identity_of_reward(reward)}
    identity = RaterIdentity(rater or name, "judge", model=name, parameters=parameters)
    file.check_rater(identity)
    missing = {one.item: one for one in comparisons if not file.has(one, identity.rater, None)}
    left = list(missing.values())
    title = f"Rewards of {identity.rater}"
    with logging.tqdm(total=len(left), unit="verdict", desc=title, disable=not left) as progress:
        for start in range(0, len(left), _COMPARISONS_AT_ONCE):
            some = left[start : start + _COMPARISONS_AT_ONCE]
            prompts = [one.prompt for one in some]
            where = [f"the prompt {one.prompt_id if one.prompt_id is not None else one.prompt_hash}" for one in some]
            texts = [one.a for one in some] + [one.b for one in some]
            rewards = rewards_of(reward, prompts * 2, texts, where * 2)
            for one, first, second in zip(some, rewards[: len(some)], rewards[len(some) :], strict=True):
                preferred = "tie" if first == second else "A" if first > second else "B"
                answer = Answer(f"Reward of A: {first!r}\nReward of B: {second!r}\nPreferred: {preferred}")
                file.append(new_verdict(one, identity, None, answer))
            progress.update(len(some))
    return identity, len(left)
