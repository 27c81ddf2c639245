"""The methods of a frontier: their trainers, knobs and data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


__all__ = ["METHODS", "Method"]


class _Trainer(NamedTuple):
    trainer: type
    config: type


@dataclass(frozen=True)
class Method:
    """
    A way to train a policy.

    Args:
        label (`str`):
            Name in results.
        knobs (`tuple[str, ...]`):
            Options of which a run has one, which trades reward for KL. Empty without such an option.
        data (`str`):
            What it is trained on: `"pairs"`, `"rankings"`, or `"prompts"` for reinforcement learning.
        load (`Callable`):
            Imports trainer and config.
        true_reward (`bool`, *optional*, defaults to `True`):
            Whether reinforcement learning gets the true reward. Otherwise it gets the reward model.
    """

    label: str
    knobs: tuple[str, ...]
    data: str
    load: Callable[[], _Trainer]
    true_reward: bool = True

    @property
    def is_rl(self) -> bool:
        """Whether it samples during training."""
        return self.data == "prompts"


def _dpo() -> Any:
    from trl_dpo_ext.trainers.dpo_config import DPOPaperConfig
    from trl_dpo_ext.trainers.dpo_trainer import DPOPaperTrainer

    return _Trainer(DPOPaperTrainer, DPOPaperConfig)


def _ranking() -> Any:
    from trl_dpo_ext.trainers.ranking_config import RankingDPOConfig
    from trl_dpo_ext.trainers.ranking_trainer import RankingDPOTrainer

    return _Trainer(RankingDPOTrainer, RankingDPOConfig)


def _unlikelihood() -> Any:
    from trl_dpo_ext.trainers.unlikelihood_config import UnlikelihoodConfig
    from trl_dpo_ext.trainers.unlikelihood_trainer import UnlikelihoodTrainer

    return _Trainer(UnlikelihoodTrainer, UnlikelihoodConfig)


def _preferred_ft() -> Any:
    from trl_dpo_ext.trainers.preferred_ft_config import PreferredFTConfig
    from trl_dpo_ext.trainers.preferred_ft_trainer import PreferredFTTrainer

    return _Trainer(PreferredFTTrainer, PreferredFTConfig)


def _rloo() -> Any:
    from trl_dpo_ext.rl.rloo_config import RLOOPaperConfig
    from trl_dpo_ext.rl.rloo_trainer import RLOOPaperTrainer

    return _Trainer(RLOOPaperTrainer, RLOOPaperConfig)


def _ppo() -> Any:
    from trl_dpo_ext.rl.ppo_config import PPOPaperConfig
    from trl_dpo_ext.rl.ppo_trainer import PPOPaperTrainer

    return _Trainer(PPOPaperTrainer, PPOPaperConfig)


_OF_RL = ("beta", "kl_target")

METHODS = {
    "dpo": Method("DPO", ("beta",), "pairs", _dpo),
    "ranking-dpo": Method("Ranking-DPO", ("beta",), "rankings", _ranking),
    "unlikelihood": Method("Unlikelihood", ("alpha",), "pairs", _unlikelihood),
    "preferred-ft": Method("Preferred-FT", (), "pairs", _preferred_ft),
    "rloo-gt": Method("RLOO, true reward", _OF_RL, "prompts", _rloo),
    "rloo": Method("RLOO, reward model", _OF_RL, "prompts", _rloo, true_reward=False),
    "ppo-gt": Method("PPO, true reward", _OF_RL, "prompts", _ppo),
    "ppo": Method("PPO, reward model", _OF_RL, "prompts", _ppo, true_reward=False),
}
