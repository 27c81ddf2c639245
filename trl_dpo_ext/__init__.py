"""
Direct Preference Optimization as the paper describes it (Rafailov et al., 2023), as an extension of Hugging Face TRL.

Public names are loaded on first use: `import trl_dpo_ext` and `import trl_dpo_ext.objectives` import neither TRL nor
transformers.
"""

from typing import TYPE_CHECKING

from trl_dpo_ext.lazy_names import lazy_names


__version__ = "0.1.0"

__all__ = [
    "BaseDPOConfig",
    "BaseDPOTrainer",
    "DPOPaperConfig",
    "DPOPaperTrainer",
    "DataCollatorForRanking",
    "ImplicitRewardModel",
    "KLTargetCallback",
    "PPOPaperConfig",
    "PPOPaperTrainer",
    "PreferredFTConfig",
    "PreferredFTTrainer",
    "RLOOPaperConfig",
    "RLOOPaperTrainer",
    "RankingDPOConfig",
    "RankingDPOTrainer",
    "UnlikelihoodConfig",
    "UnlikelihoodTrainer",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "trl_dpo_ext.data.rankings.collator": ("DataCollatorForRanking",),
        "trl_dpo_ext.reward_model.implicit_reward_model": ("ImplicitRewardModel",),
        "trl_dpo_ext.rl.kl_target": ("KLTargetCallback",),
        "trl_dpo_ext.rl.ppo_config": ("PPOPaperConfig",),
        "trl_dpo_ext.rl.ppo_trainer": ("PPOPaperTrainer",),
        "trl_dpo_ext.rl.rloo_config": ("RLOOPaperConfig",),
        "trl_dpo_ext.rl.rloo_trainer": ("RLOOPaperTrainer",),
        "trl_dpo_ext.trainers.base_config": ("BaseDPOConfig",),
        "trl_dpo_ext.trainers.base_trainer": ("BaseDPOTrainer",),
        "trl_dpo_ext.trainers.dpo_config": ("DPOPaperConfig",),
        "trl_dpo_ext.trainers.dpo_trainer": ("DPOPaperTrainer",),
        "trl_dpo_ext.trainers.preferred_ft_config": ("PreferredFTConfig",),
        "trl_dpo_ext.trainers.preferred_ft_trainer": ("PreferredFTTrainer",),
        "trl_dpo_ext.trainers.ranking_config": ("RankingDPOConfig",),
        "trl_dpo_ext.trainers.ranking_trainer": ("RankingDPOTrainer",),
        "trl_dpo_ext.trainers.unlikelihood_config": ("UnlikelihoodConfig",),
        "trl_dpo_ext.trainers.unlikelihood_trainer": ("UnlikelihoodTrainer",),
    },
)

if TYPE_CHECKING:
    from trl_dpo_ext.data.rankings.collator import DataCollatorForRanking
    from trl_dpo_ext.reward_model.implicit_reward_model import ImplicitRewardModel
    from trl_dpo_ext.rl.kl_target import KLTargetCallback
    from trl_dpo_ext.rl.ppo_config import PPOPaperConfig
    from trl_dpo_ext.rl.ppo_trainer import PPOPaperTrainer
    from trl_dpo_ext.rl.rloo_config import RLOOPaperConfig
    from trl_dpo_ext.rl.rloo_trainer import RLOOPaperTrainer
    from trl_dpo_ext.trainers.base_config import BaseDPOConfig
    from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer
    from trl_dpo_ext.trainers.dpo_config import DPOPaperConfig
    from trl_dpo_ext.trainers.dpo_trainer import DPOPaperTrainer
    from trl_dpo_ext.trainers.preferred_ft_config import PreferredFTConfig
    from trl_dpo_ext.trainers.preferred_ft_trainer import PreferredFTTrainer
    from trl_dpo_ext.trainers.ranking_config import RankingDPOConfig
    from trl_dpo_ext.trainers.ranking_trainer import RankingDPOTrainer
    from trl_dpo_ext.trainers.unlikelihood_config import UnlikelihoodConfig
    from trl_dpo_ext.trainers.unlikelihood_trainer import UnlikelihoodTrainer
