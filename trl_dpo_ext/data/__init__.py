"""
Datasets of preferences and rankings: collator, conversions, and rows of public datasets.
"""

from typing import TYPE_CHECKING

from trl_dpo_ext.lazy_names import lazy_names


__all__ = [
    "DataCollatorForRanking",
    "PairsReport",
    "all_pairs",
    "best_random_pairs",
    "best_worst_pairs",
    "examine",
    "from_nectar",
    "from_stack_exchange",
    "from_summarize_from_feedback",
    "from_ultrafeedback",
    "pairs_to_rankings",
    "scores_to_ranking",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "trl_dpo_ext.data.conversion.from_pairs": (
            "PairsReport",
            "pairs_to_rankings",
        ),
        "trl_dpo_ext.data.conversion.public_datasets": (
            "from_nectar",
            "from_stack_exchange",
            "from_summarize_from_feedback",
            "from_ultrafeedback",
        ),
        "trl_dpo_ext.data.conversion.to_pairs": (
            "all_pairs",
            "best_random_pairs",
            "best_worst_pairs",
            "scores_to_ranking",
        ),
        "trl_dpo_ext.data.doctor.examination": ("examine",),
        "trl_dpo_ext.data.rankings.collator": ("DataCollatorForRanking",),
    },
)

if TYPE_CHECKING:
    from trl_dpo_ext.data.conversion.from_pairs import PairsReport, pairs_to_rankings
    from trl_dpo_ext.data.conversion.public_datasets import (
        from_nectar,
        from_stack_exchange,
        from_summarize_from_feedback,
        from_ultrafeedback,
    )
    from trl_dpo_ext.data.conversion.to_pairs import all_pairs, best_random_pairs, best_worst_pairs, scores_to_ranking
    from trl_dpo_ext.data.doctor.examination import examine
    from trl_dpo_ext.data.rankings.collator import DataCollatorForRanking
