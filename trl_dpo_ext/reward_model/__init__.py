"""
The policy as a reward model.
"""

from typing import TYPE_CHECKING

from trl_dpo_ext.lazy_names import lazy_names


__all__ = [
    "BestCompletion",
    "ImplicitRewardModel",
    "PreferenceAccuracy",
    "PreferenceReport",
    "TokenRewards",
    "open_rows",
    "score_file",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "trl_dpo_ext.reward_model.files.row_sources": ("open_rows",),
        "trl_dpo_ext.reward_model.files.score_file": ("score_file",),
        "trl_dpo_ext.reward_model.implicit_reward_model": ("ImplicitRewardModel",),
        "trl_dpo_ext.reward_model.results": (
            "BestCompletion",
            "PreferenceAccuracy",
            "PreferenceReport",
            "TokenRewards",
        ),
    },
)

if TYPE_CHECKING:
    from trl_dpo_ext.reward_model.files.row_sources import open_rows
    from trl_dpo_ext.reward_model.files.score_file import score_file
    from trl_dpo_ext.reward_model.implicit_reward_model import ImplicitRewardModel
    from trl_dpo_ext.reward_model.results import BestCompletion, PreferenceAccuracy, PreferenceReport, TokenRewards
