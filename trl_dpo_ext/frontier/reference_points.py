"""Points that are estimated from samples of the initial policy alone: best of N, and the optimum of Eq. 3."""

from collections.abc import Iterator

import numpy as np

from trl_dpo_ext.evaluation.policies.estimates import mean_over_prompts
from trl_dpo_ext.evaluation.policies.policy_evaluation import PolicyEvaluation
from trl_dpo_ext.frontier.points import point_of
from trl_dpo_ext.frontier.table import BEST_OF_N, OPTIMUM, SFT, Point


__all__ = ["optimum", "reference_points"]

_BEST_OF = (2, 4, 8, 16, 32, 64, 128)
_BETAS = tuple(10.0**exponent for exponent in np.linspace(1, -3, 33))
# Weights of fewer samples than this estimate neither reward nor KL
_LEAST_SAMPLES = 8


def reference_points(evaluation: PolicyEvaluation, known: frozenset[str]) -> list[Point]:
    """
    Returns the points of the initial policy, of best of N, and of the optimum.

    Args:
        evaluation ([`PolicyEvaluation`]):
            The initial policy, with many samples of each prompt.
        known (`frozenset[str]`):
            Words that are not new.
    """
    cost = {"wall_s": 0.0, "samples_drawn": 0, "reward_calls": 0}
    initial = point_of(evaluation, known, method=SFT, knob="", seed=0, update=0, **cost)
    points = [initial]
    for row in evaluation.summary(best_of=_BEST_OF).get("best_of_n", []):
        values = (row[name] for name in ("reward", "reward_se", "kl", "kl_se", "kl_bound"))
        points.append(_estimate(BEST_OF_N, f"N={row['n']}", *values))
    for beta, reward, kl in optimum(evaluation.reward):
        points.append(_estimate(OPTIMUM, f"beta={beta:.4g}", *reward, *kl, float("nan")))
    return points


def _estimate(method: str, knob: str, reward: float, reward_se: float, kl: float, kl_se: float, kl_k1: float) -> Point:
    none = float("nan")
    return Point(method, knob, 0, 0, reward, reward_se, kl, kl_se, kl_k1, none, none, none, 0.0, 0, 0)


def optimum(rewards: np.ndarray) -> Iterator[tuple[float, tuple[float, float], tuple[float, float]]]:
    r"""
    Yields beta, reward and KL of the optimal policy of Eq. 4, estimated from samples of the reference.

    With the weights \\( w_i \propto \exp(r_i / \beta) \\) of the m samples of a prompt, normalized:

    $$ E_{\pi^*}[r] \approx \sum_i w_i r_i, \qquad
       KL[\pi^* \| \pi_{ref}] \approx \sum_i w_i \log(m w_i) $$

    Both are biased towards the reference, and the KL cannot exceed log m. Values of beta at which the effective number
    of samples, \\( 1 / \sum_i w_i^2 \\), is less than 8 on average are left out.

    Args:
        rewards (`numpy.ndarray` of shape `(P, m)`):
            Rewards of the samples of each prompt.
    """
    num = rewards.shape[1]
    for beta in _BETAS:
        scores = (rewards - rewards.max(axis=1, keepdims=True)) / beta
        weights = np.exp(scores)
        weights /= weights.sum(axis=1, keepdims=True)
        if (1 / (weights**2).sum(axis=1)).mean() < _LEAST_SAMPLES:
            return
        logs = np.log(np.maximum(weights * num, np.finfo(float).tiny))
        yield (
            beta,
            mean_over_prompts((weights * rewards).sum(axis=1)),
            mean_over_prompts((weights * logs).sum(axis=1)),
        )
