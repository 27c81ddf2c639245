"""Best of N: brute force over all subsets, and exact best-of-N policies over few completions."""

import itertools
import math

import numpy as np
import pytest
import torch
from closeness import same
from scipy.special import xlogy

from trl_dpo_ext.evaluation import best_of_n, best_of_n_kl, best_of_n_kl_bound


def over_subsets(scores: list[float], values: list[float], n: int) -> float:
    """Mean over all subsets of the value of the best sample, ties averaged."""
    of_each = []
    for subset in itertools.combinations(range(len(scores)), n):
        best = max(scores[i] for i in subset)
        of_each.append(np.mean([values[i] for i in subset if scores[i] == best]))
    return float(np.mean(of_each))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_equal_to_all_subsets(n, levels):
    draws = np.random.default_rng(n)
    scores = draws.integers(0, levels, (6, 8)) / 7.0
    values = draws.normal(size=(6, 8))
    expected = [over_subsets(list(s), list(v), n) for s, v in zip(scores, values, strict=True)]
    assert best_of_n(scores, n, values) == same(np.array(expected))
    own = [over_subsets(list(s), list(s), n) for s in scores]
    assert best_of_n(scores.tolist(), n) == same(np.array(own))


def test_tensors_give_tensors():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    found = best_of_n(scores, 3, torch.tensor([[10, 20, 30], [1, 2, 6]]))
    assert isinstance(found, torch.Tensor) and found.dtype == torch.float64
    assert found.tolist() == same([10.0, 3.0])


def test_large_numbers_of_samples():
    scores = np.random.default_rng(0).normal(size=(1, 4000))
    assert best_of_n(scores, 4000) == same(scores.max(axis=1))
    assert best_of_n(scores, 1) == same(scores.mean(axis=1))


def best_of_n_policy(p: np.ndarray, n: int) -> np.ndarray:
    """Probabilities of the best of n draws, where a completion's score is its index."""
    cumulative = np.concatenate([[0.0], np.cumsum(p)])
    return cumulative[1:] ** n - cumulative[:-1] ** n


@pytest.mark.parametrize("n", [4, 16, 128])
def test_kl_lies_between_the_exact_one_and_the_bound(n):
    p = np.array([0.35, 0.25, 0.2, 0.17, 0.03])
    q = best_of_n_policy(p, n)
    exact = float(xlogy(q, q / p).sum())
    estimate = float(q @ best_of_n_kl(np.log(p), n))
    assert exact <= estimate + 1e-3 and estimate <= best_of_n_kl_bound(n)
    assert estimate - exact < 0.05


@pytest.mark.parametrize("n", [1, 4, 128])
def test_kl_of_many_unlikely_completions_is_the_bound(n):
    p = np.full(100_000, 1e-5)
    q = best_of_n_policy(p, n)
    exact = float(xlogy(q, q / p).sum())
    assert best_of_n_kl_bound(n) == pytest.approx(exact, abs=1e-3)
    assert float(best_of_n_kl([math.log(1e-5)], n)[0]) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("n", [1, 2, 16, 1024])
@pytest.mark.parametrize("logp", [0.0, -1e-18, -1e-3, -1.0, -30.0, -700.0, -1e4, -math.inf])
def test_kl_at_the_ends(n, logp):
    found = float(best_of_n_kl([logp], n)[0])
    epsilon = math.exp(logp)
    if epsilon == 1:
        assert found == same(0.0)
    elif logp <= -30:
        assert found == same(best_of_n_kl_bound(n))
    else:
        none = (1 - epsilon) ** n
        expected = none * (math.log(n) + (n - 1) * math.log(1 - epsilon) - (n - 1) / n)
        assert found == same(expected + (1 - none) * math.log((1 - none) / epsilon))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_of_n([[1.0, 2.0]], 3), "`n=3` must be from 1 to the number of samples, 2"),
        (lambda: best_of_n([[1.0, 2.0]], 0), "`n=0` must be from 1"),
        (lambda: best_of_n([[1.0], [math.nan]], 1), r"`scores\[1\]\[0\]` is not finite"),
        (lambda: best_of_n([[1.0, 2.0]], 1, [[1.0, math.inf]]), r"`values\[0\]\[1\]` is not finite"),
        (lambda: best_of_n([1.0, 2.0], 1), r"`scores` has the shape \(2,\)"),
        (lambda: best_of_n([[1.0, 2.0]], 1, [[1.0]]), r"and `values` \(1, 1\)"),
        (lambda: best_of_n([[1.0, 2.0], [1.0]], 1), "`scores` is not an array of numbers"),
        (lambda: best_of_n_kl([0.1], 2), "is NaN or above 0"),
        (lambda: best_of_n_kl([math.nan], 2), "is NaN or above 0"),
        (lambda: best_of_n_kl([-1.0], 0), "`n=0` must be at least 1"),
        (lambda: best_of_n_kl_bound(0), "`n=0` must be at least 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
