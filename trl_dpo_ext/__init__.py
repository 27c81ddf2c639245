"""
Direct Preference Optimization as the paper describes it (Rafailov et al., 2023), as an extension of Hugging Face TRL.

Public names load on first use: `import trl_dpo_ext` and `import trl_dpo_ext.objectives` import neither TRL nor
transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

_MODULE_OF = {
    "DPOPaperConfig": "trl_dpo_ext.trainers.dpo_config",
    "DPOPaperTrainer": "trl_dpo_ext.trainers.dpo_trainer",
    "DataCollatorForRanking": "trl_dpo_ext.data.rankings.collator",
    "ImplicitRewardModel": "trl_dpo_ext.scoring.implicit_reward_model",
    "PreferredFTConfig": "trl_dpo_ext.trainers.preferred_ft_config",
    "PreferredFTTrainer": "trl_dpo_ext.trainers.preferred_ft_trainer",
    "RankingDPOConfig": "trl_dpo_ext.trainers.ranking_config",
    "RankingDPOTrainer": "trl_dpo_ext.trainers.ranking_trainer",
    "UnlikelihoodConfig": "trl_dpo_ext.trainers.unlikelihood_config",
    "UnlikelihoodTrainer": "trl_dpo_ext.trainers.unlikelihood_trainer",
}

__all__ = [
    "DPOPaperConfig",
    "DPOPaperTrainer",
    "DataCollatorForRanking",
    "ImplicitRewardModel",
    "PreferredFTConfig",
    "PreferredFTTrainer",
    "RankingDPOConfig",
    "RankingDPOTrainer",
    "UnlikelihoodConfig",
    "UnlikelihoodTrainer",
]

if TYPE_CHECKING:
    from trl_dpo_ext.data.rankings.collator import DataCollatorForRanking
    from trl_dpo_ext.scoring.implicit_reward_model import ImplicitRewardModel
    from trl_dpo_ext.trainers.dpo_config import DPOPaperConfig
    from trl_dpo_ext.trainers.dpo_trainer import DPOPaperTrainer
    from trl_dpo_ext.trainers.preferred_ft_config import PreferredFTConfig
    from trl_dpo_ext.trainers.preferred_ft_trainer import PreferredFTTrainer
    from trl_dpo_ext.trainers.ranking_config import RankingDPOConfig
    from trl_dpo_ext.trainers.ranking_trainer import RankingDPOTrainer
    from trl_dpo_ext.trainers.unlikelihood_config import UnlikelihoodConfig
    from trl_dpo_ext.trainers.unlikelihood_trainer import UnlikelihoodTrainer


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
