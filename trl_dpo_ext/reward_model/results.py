"""What a reward model returns beside plain numbers."""

from dataclasses import asdict, dataclass, field
from typing import Any


__all__ = ["BestCompletion", "PreferenceAccuracy", "PreferenceReport", "TokenRewards"]


@dataclass(frozen=True)
class TokenRewards:
    r"""
    The reward of a completion, token by token.

    Args:
        token_ids (`list[int]`):
            Tokens of the completion that the reward counts, after truncation, EOS included.
        tokens (`list[str]`):
            The same as the tokenizer writes them.
        rewards (`list[float]`):
            \\( \beta \log(\pi(y_t|x, y_{<t}) / \pi_{ref}(y_t|x, y_{<t})) \\) of each; they add up to the completion's
            reward.
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
            Its place among them; of several that tie, the first.
        completion (`Any`):
            Itself, text or messages.
        reward (`float`):
            Its reward.
    """

    index: int
    completion: Any
    reward: float


@dataclass(frozen=True)
class PreferenceAccuracy:
    """
    How often a reward model agrees with preferences.

    Args:
        count (`int`):
            Pairs.
        accuracy (`float`):
            Share of them whose chosen completion has the strictly larger reward.
        ties (`float`):
            Share of them whose two rewards are equal: not counted as right.
        margin (`float`):
            Mean of the chosen minus the rejected reward.
    """

    count: int
    accuracy: float
    ties: float
    margin: float

    @classmethod
    def of(cls, chosen: list[float], rejected: list[float]) -> "PreferenceAccuracy":
        """Of the rewards of pairs, at least one."""
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
    Agreement with a preference data set, as RewardBench reports it.

    Args:
        overall (`PreferenceAccuracy`):
            Over all pairs.
        subsets (`dict[str, PreferenceAccuracy]`):
            Over the pairs of each subset, in the order in which they first come; empty without a subset column.
    """

    overall: PreferenceAccuracy
    subsets: dict[str, PreferenceAccuracy] = field(default_factory=dict)

    @property
    def mean_over_subsets(self) -> float:
        """Mean of the subsets' accuracies, each counted once whatever its size; the overall one without subsets."""
        accuracies = [subset.accuracy for subset in self.subsets.values()] or [self.overall.accuracy]
        return sum(accuracies) / len(accuracies)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self) | {"mean_over_subsets": self.mean_over_subsets}

    def __str__(self) -> str:
        lines = [
            f"{name}: accuracy {part.accuracy:.4f}, ties {part.ties:.4f}, margin {part.margin:.4f}, {part.count} pairs"
            for name, part in {**self.subsets, "all": self.overall}.items()
        ]
        if self.subsets:
            lines.append(f"mean over subsets: accuracy {self.mean_over_subsets:.4f}")
        return "\n".join(lines)
