"""Ground-truth reward of film reviews."""

import re

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag


__all__ = ["SentimentReward"]

_STRENGTH = 0.05  # of the data against the penalty on weights


class SentimentReward:
    """
    Ground-truth reward of a review: the probability of "good" under a logistic regression on words and word pairs.

    It is strongly regularized on purpose. A classifier that is certain of every review would only give rewards of 0
    and 1, which leave nothing to rank.

    Args:
        reviews (`list[dict[str, str]]`):
            Rows with `text` and `sentiment` ("good" or "bad").
    """

    def __init__(self, reviews: list[dict[str, str]]):
        found = [_words_and_pairs(review["text"]) for review in reviews]
        self._index = {feature: place for place, feature in enumerate(sorted(set().union(*found)))}
        good = torch.tensor([float(review["sentiment"] == "good") for review in reviews], dtype=torch.float64)
        self._weights = torch.zeros(len(self._index), 1, dtype=torch.float64, requires_grad=True)
        self._bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
        self._fit(self._bags(found), good)

    def _fit(self, bags: tuple[Tensor, Tensor], good: Tensor) -> None:
        optimizer = torch.optim.LBFGS(
            [self._weights, self._bias],
            max_iter=500,
            history_size=10,
            tolerance_grad=1e-5,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            data = binary_cross_entropy_with_logits(self._logits(*bags), good, reduction="sum")
            total = _STRENGTH * data + 0.5 * self._weights.square().sum()
            total.backward()
            return total

        optimizer.step(loss)

    def _bags(self, features: list[set[str]]) -> tuple[Tensor, Tensor]:
        """Places of the known features of all texts, one text after another, and where each text starts."""
        rows = [[self._index[feature] for feature in row if feature in self._index] for row in features]
        ids = torch.tensor([place for row in rows for place in row], dtype=torch.long)
        return ids, torch.tensor([0, *(len(row) for row in rows)][:-1]).cumsum(0)

    def _logits(self, ids: Tensor, starts: Tensor) -> Tensor:
        """Sums of weights, shape `(n,)`."""
        return embedding_bag(ids, self._weights, starts, mode="sum")[:, 0] + self._bias

    @torch.no_grad()
    def __call__(self, prompts: list[str], completions: list[str]) -> np.ndarray:
        """Returns the rewards of prompts with completions, in [0, 1], shape `(n,)`."""
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        return torch.sigmoid(self._logits(*self._bags([_words_and_pairs(text) for text in texts]))).numpy()


def _words_and_pairs(text: str) -> set[str]:
    words = re.findall(r"\b\w\w+\b", text.lower())
    return {*words, *(f"{first} {second}" for first, second in zip(words, words[1:], strict=False))}
