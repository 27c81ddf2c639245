"""Results of a reward model, except plain numbers."""

from dataclasses import asdict, dataclass, field
from typing import Any


__all__ = ["BestCompletion", "PreferenceAccuracy", "PreferenceReport", "TokenRewards"]


@dataclass(frozen=True)
class TokenRewards:
    r"""
    The rewards of the tokens of a completion.

    Args:
        token_ids (`list[int]`):
            Scored tokens of the completion, after truncation and including EOS.
        tokens (`list[str]`):
            The same tokens as text.
        rewards (`list[float]`):
            \\( \beta \log(\pi(y_t|x, y_{<t}) / \pi_{ref}(y_t|x, y_{<t})) \\) of each token. Their sum is the reward
            of the completion.
    """

    token_ids: list[int]
    tokens: list[str]
    rewards: list[float]


@dataclass(frozen=True)
class BestCompletion:
    """
    The best of N completions of a prompt.

    Args:
        index (`int`):
            Index of the completion. Of equal rewards, the first counts.
        completion (`Any`):
            The completion, as text or messages.
        reward (`float`):
            Its reward.
    """

    index: int
    completion: Any
    reward: float


@dataclass(frozen=True)
class PreferenceAccuracy:
    """
    Agreement of a reward model with preferences.

    Args:
        count (`int`):
            Number of pairs.
        accuracy (`float`):
            Share of pairs whose chosen completion has the strictly larger reward.
        ties (`float`):
            Share of pairs with equal rewards, which do not count as correct.
        margin (`float`):
            Mean difference of the chosen and the rejected reward.
    """

    count: int
    accuracy: float
    ties: float
    margin: float

    @classmethod
    def of(cls, chosen: list[float], rejected: list[float]) -> "PreferenceAccuracy":
        """Computes the agreement from the rewards of at least one pair."""
        pairs = list(zip(chosen, rejected, strict=True))
        return cls(
            count=len(pairs),
            accuracy=sum(a > b for a, b in pairs) / len(pairs),
            ties=sum(a == b for a, b in pairs) / len(pairs),
            margin=sum(a - b for a, b in pairs) / len(pairs),
        )


@dataclass(frozen=True)
class PreferenceReport:
    """
    Agreement with a preference dataset, as in RewardBench.

    Args:
        overall (`PreferenceAccuracy`):
            Over all pairs.
        subsets (`dict[str, PreferenceAccuracy]`):
            By subset, in order of first appearance. Empty without a subset column.
    """

    overall: PreferenceAccuracy
    subsets: dict[str, PreferenceAccuracy] = field(default_factory=dict)

    @property
    def mean_over_subsets(self) -> float:
        """Mean of the accuracies of the subsets, all with equal weight. Without subsets, the overall accuracy."""
        accuracies = [subset.accuracy for subset in self.subsets.values()] or [self.overall.accuracy]
        return sum(accuracies) / len(accuracies)

    def as_dict(self) -> dict[str, Any]:
        """All values as a dict, for JSON."""
        return asdict(self) | {"mean_over_subsets": self.mean_over_subsets}

    def __str__(self) -> str:
        lines = [
            f"{name}: accuracy {part.accuracy:.4f}, ties {part.ties:.4f}, margin {part.margin:.4f}, {part.count} pairs"
            for name, part in {**self.subsets, "all": self.overall}.items()
        ]
        if self.subsets:
            lines.append(f"mean over subsets: accuracy {self.mean_over_subsets:.4f}")
        return "\n".join(lines)
